//! An `Idempotency-Key` fits one request, wherever the records live.

use terrace_prove::checkers::idempotency;

use super::field::Field;

async fn a_key_fits_one_request(level: u8) {
    let field = Field::new(level).await;
    let (a, b) = (field.instance("a").await, field.instance("b").await);
    let first = a.client.write("k0", "first").idempotency_key("once").send().await;
    assert!(first.is_acknowledged(), "{first}");
    let again = b.client.write("k0", "first").idempotency_key("once").send().await;
    assert_eq!(again.version, first.version, "{again}");
    b.client.write("k0", "other").idempotency_key("once").send().await;
    // Other records, on other slots and shards.
    for number in 1..8 {
        let instance = if number % 2 == 0 { &a } else { &b };
        let (key, value) = (format!("k{number}"), format!("other {number}"));
        instance.client.write(&key, &value).idempotency_key("once").send().await;
    }
    let operations = field.history.operations();
    idempotency(&operations).assert_holds();
    let other = |it: &&terrace_prove::Operation| it.key != "k0";
    for operation in operations.iter().filter(other) {
        assert_eq!(operation.status, 422, "{operation}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_1() {
    a_key_fits_one_request(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_4() {
    a_key_fits_one_request(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_6() {
    a_key_fits_one_request(6).await;
}
