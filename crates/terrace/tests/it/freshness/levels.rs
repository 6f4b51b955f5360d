//! A token of one level is sent to an instance of another one on the same database: it is satisfied, or
//! answered as what nobody there can prove.

use terrace_prove::checkers::sessions;

use super::field::Field;

async fn across_levels(from: u8, to: u8) {
    let mut field = Field::new(from).await;
    let apart = [("TERRACE_JOURNAL_FLUSHER", "apart")];
    let a = field.instance_with("a", &field.database, if from == 6 { &apart } else { &[] }).await;
    field.level = to;
    let b = field.instance("b").await;
    let keys: Vec<_> = (0..4).map(|number| format!("k{number}")).collect();
    for key in &keys {
        b.client.write(key, "old").wait().send().await;
        for _ in 0..5 {
            b.client.read(key).send().await;
        }
    }
    for key in &keys {
        let write = a.writes(key, "new").await;
        for _ in 0..3 {
            b.client.read(key).after(&write).send().await;
        }
        let seen = a.client.read(key).after(&write).send().await;
        b.client.read(key).after(&seen).send().await;
    }
    sessions(&field.history.operations()).assert_not_violated();
}

macro_rules! across {
    ($($name:ident: $from:literal, $to:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            across_levels($from, $to).await;
        })*
    };
}
across! {
    from_0_to_2: 0, 2;
    from_1_to_5: 1, 5;
    from_6_to_1: 6, 1;
    from_6_to_2: 6, 2;
    from_6_to_5: 6, 5;
    from_6_to_7: 6, 7;
    from_7_to_2: 7, 2;
    from_2_to_7: 2, 7;
    from_2_to_6: 2, 6;
    from_7_to_6: 7, 6;
}
