//! Two standbys are promoted one after the other, and the second never saw what the first wrote: a token
//! of that is not satisfied by it, though both have timelines of the same number.

use terrace_lab::testing::replicated;
use terrace_prove::Answer;

use super::engines::sql;
use super::field::{Field, Instance};
use super::{WATCH, pause, until};

const LOST: usize = 40;

async fn serves(instance: &Instance) {
    until("it writes again", async || {
        instance.client.write("other", "after").wait().send().await.is_acknowledged()
    })
    .await;
}

/// A primary fails over to one standby, which gives writes out; then the other standby, which never
/// saw them, is promoted to a timeline of the same number.
async fn two_siblings(level: u8) {
    let servers = replicated(2, &[]).await;
    let field = Field::on(level, servers.primary.url()).await;
    let (a, b) = (field.instance("a").await, field.instance("b").await);
    let kept = a.client.write("left", "kept").wait().send().await;
    assert!(kept.is_acknowledged(), "{kept}");
    a.client.write("written", "kept").wait().send().await;
    let sent = sql(&servers.primary.url(), "SELECT pg_current_wal_insert_lsn()").await;
    for standby in &servers.standbys {
        let has_it = format!("SELECT pg_last_wal_replay_lsn() >= '{sent}'::pg_lsn");
        until("the standby has it", async || sql(&standby.url(), &has_it).await == "t").await;
    }
    servers.primary.kill();
    let to = async |number: usize| {
        let standby = &servers.standbys[number];
        standby.promote().await.expect("a promotion");
        for instance in [&a, &b] {
            instance.postgres.retarget(([127, 0, 0, 1], standby.port()).into());
        }
        serves(&a).await;
        serves(&b).await;
        sql(&standby.url(), "SELECT name, generation, identity FROM terrace_history").await
    };
    let first = to(0).await;
    let mut written = Vec::new();
    for number in 0..LOST {
        let answer = a.client.write("written", &format!("lost {number}")).wait().send().await;
        assert!(answer.is_acknowledged(), "{answer}");
        written.push(answer);
    }
    let left = a.client.write("left", "lost").wait().send().await;
    assert!(left.is_acknowledged(), "{left}");
    for _ in 0..4 {
        for instance in [&a, &b] {
            instance.client.read("left").send().await;
            instance.client.read("written").send().await;
        }
    }
    servers.standbys[0].kill();
    let second = to(1).await;
    pause(WATCH).await;
    let wrong = violations(&a, &b, &written, &left).await;
    assert!(wrong.is_empty(), "first {first}\nsecond {second}\n{}", wrong.join("\n"));
}

/// What shows of the lost writes, through either instance.
async fn violations(a: &Instance, b: &Instance, written: &[Answer], left: &Answer) -> Vec<String> {
    let mut wrong = vec![];
    for instance in [b, a] {
        let now = instance.client.read("left").strong().send().await;
        assert_eq!(now.found.as_deref(), Some("kept"), "it is lost: {now}");
        for key in ["left", "written"] {
            let read = instance.client.read(key).send().await;
            if read.found.as_deref() != Some("kept") {
                wrong.push(format!("lost, and shown: {read}"));
            }
        }
        for (key, lost) in [("written", &written[LOST - 1]), ("left", left)] {
            let read = instance.client.read(key).after(lost).send().await;
            if read.status != 503 {
                wrong.push(format!("a token of what is lost was satisfied: {read}"));
            }
        }
    }
    let versions: Vec<_> = written.iter().filter_map(|it| it.version).collect();
    for number in 0..LOST * 2 {
        let other = b.client.write("written", &format!("other {number}")).wait().send().await;
        if other.version.is_some_and(|it| versions.contains(&it)) {
            wrong.push(format!("a lost version is given out again: {other}"));
            break;
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_1() {
    two_siblings(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_2() {
    two_siblings(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_5() {
    two_siblings(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_6() {
    two_siblings(6).await;
}
