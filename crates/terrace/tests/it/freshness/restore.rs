//! A dump is restored over the database: what was written since is lost, for
//! caches, tokens and versions, too.

use terrace_prove::Outcome;
use terrace_prove::checkers::conditions;

use super::engines::postgres_program;
use super::field::{Field, Instance};
use super::{WATCH, pause, rounds, until};

const WRITTEN: &str = "written";
const LEFT: &str = "left";

pub(super) async fn dump(field: &Field) -> String {
    let mut command = postgres_program("pg_dump", &["--clean", "--if-exists", &field.database]);
    let output = command.output().await.expect("pg_dump runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Drops what the dump has, and makes it again, in one transaction.
pub(super) async fn restore(field: &Field, dump: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), dump).expect("a write");
    let path = file.path().to_str().expect("a path");
    let arguments = ["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", path, &field.database];
    let output = postgres_program("psql", &arguments).output().await.expect("psql runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn serves(instance: &Instance) {
    until("it writes again", async || {
        instance.client.write("other", "after the restore").send().await.is_acknowledged()
    })
    .await;
}

async fn a_restored_dump(level: u8, between_runs: bool) {
    for _ in 0..rounds() {
        let field = Field::new(level).await;
        let (mut a, mut b) = (field.instance("a").await, field.instance("b").await);
        for key in [WRITTEN, LEFT] {
            a.writes(key, "kept").await;
        }
        let dump = dump(&field).await;
        let nearest = if level == 5 { "near" } else { "far" };
        let mut lost = None;
        for key in [WRITTEN, LEFT] {
            for number in 0..5 {
                a.writes(key, &format!("lost {number}")).await;
            }
            lost = Some(a.writes(key, "lost").await);
            b.caches(key, "lost", nearest).await;
        }
        let lost = lost.expect("the last of them");
        if between_runs {
            a.program.terminate().await;
            b.program.terminate().await;
            restore(&field, &dump).await;
            (a, b) = (field.instance("a").await, field.instance("b").await);
        } else {
            restore(&field, &dump).await;
        }
        serves(&a).await;
        serves(&b).await;
        pause(WATCH).await;
        let mut wrong = Vec::new();
        let now = b.client.read(LEFT).strong().send().await;
        assert_eq!(now.found.as_deref(), Some("kept"), "the dump is restored: {now}");
        let read = b.client.read(LEFT).send().await;
        if read.found.as_deref() != Some("kept") {
            wrong.push(format!("lost, and shown: {read}"));
        }
        let read = b.client.read(LEFT).after(&lost).send().await;
        if read.outcome != Outcome::Fail || read.status != 503 {
            wrong.push(format!("a token of what is lost was satisfied: {read}"));
        }
        let after = a.writes(WRITTEN, "after").await;
        for request in [b.client.read(WRITTEN), b.client.read(WRITTEN).after(&after)] {
            let read = request.send().await;
            if read.found.as_deref() != Some("after") {
                wrong.push(format!("outranked by what is lost: {read} after {after}"));
            }
        }
        // Beside a token of what is there, one of what is lost asks for as much as alone.
        let other = b.client.read("other").send().await;
        for (first, second) in [(&lost, &other), (&other, &lost)] {
            let read = b.client.read(LEFT).after(first).after(second).send().await;
            if read.status != 503 {
                wrong.push(format!("one of two tokens is lost: {read}"));
            }
        }
        let versions = conditions(&field.history.operations());
        assert!(wrong.is_empty(), "{}\nversions: {versions}", wrong.join("\n"));
        versions.assert_not_violated();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_level_1_runs() {
    versions_are_not_given_out_again().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_level_2_runs() {
    a_restored_dump(2, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_level_5_runs() {
    a_restored_dump(5, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_runs_of_level_2() {
    a_restored_dump(2, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_runs_of_level_5() {
    a_restored_dump(5, true).await;
}

/// The same dump is put into a database made anew, and again: the second one has no trace of what was
/// done in the first.
async fn a_dump_restored_twice(level: u8) {
    let mut field = Field::new(level).await;
    let journal = if level == 6 { Some(field.journal().await) } else { None };
    let journal = journal.as_ref().map(|server| ("JOURNAL_URL", server.url()));
    let environment: Vec<_> = journal.iter().map(|(name, url)| (*name, url.as_str())).collect();
    let first = field.instance_with("first", &field.database, &environment).await;
    assert!(first.client.write(LEFT, "kept").wait().send().await.is_acknowledged());
    assert!(first.program.terminate().await.success());
    let dump = dump(&field).await;
    let mut lost = Vec::new();
    for life in ["second", "third"] {
        field.database = terrace_lab::testing::fresh_database();
        restore(&field, &dump).await;
        let instance = field.instance_with(life, &field.database, &environment).await;
        // At level 7 the projection begins anew, and a read that asks for nothing may come before it.
        let read = instance.client.read(LEFT).strong().send().await;
        assert_eq!(read.found.as_deref(), Some("kept"), "{read}");
        for token in &lost {
            for request in [instance.client.read(LEFT), instance.client.read(LEFT).strong()] {
                let read = request.after(token).send().await;
                assert_eq!(read.status, 503, "a token of what is lost was satisfied: {read}");
            }
        }
        let write = instance.client.write(LEFT, life).wait().send().await;
        assert!(write.is_acknowledged(), "{write}");
        let read = instance.client.read(LEFT).after(&write).send().await;
        assert_eq!(read.found.as_deref(), Some(life), "{read}");
        lost.push(write);
        if level == 6 {
            lost.push(instance.client.write("waits", life).send().await);
        }
        assert!(instance.program.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twice_at_level_1() {
    a_dump_restored_twice(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twice_at_level_5() {
    a_dump_restored_twice(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twice_at_level_6() {
    a_dump_restored_twice(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twice_at_level_7() {
    a_dump_restored_twice(7).await;
}

/// `If-Match` on a version from before the restore meets nothing that was written after it.
async fn versions_are_not_given_out_again() {
    let field = Field::new(1).await;
    let a = field.instance("a").await;
    a.writes(WRITTEN, "kept").await;
    let dump = dump(&field).await;
    let mut lost = Vec::new();
    for number in 0..10 {
        lost.push(a.writes(WRITTEN, &format!("lost {number}")).await);
    }
    restore(&field, &dump).await;
    serves(&a).await;
    let token = a.client.read(WRITTEN).after(&lost[9]).send().await;
    let versions: Vec<_> = lost.iter().filter_map(|it| it.version).collect();
    let mut met = versions[9];
    for number in 0..10 {
        // Together they meet odd and even versions.
        a.writes(&format!("new {number}"), "after").await;
        let other = a.writes(WRITTEN, &format!("other {number}")).await;
        if let Some(version) = other.version.filter(|it| versions.contains(it)) {
            met = version;
            break;
        }
    }
    let blind = a.client.write(WRITTEN, "blind").if_version(met).send().await;
    assert_eq!(blind.status, 412, "a version of lost content matched: {blind}");
    assert_eq!(token.status, 503, "a token of what is lost was satisfied: {token}");
    conditions(&field.history.operations()).assert_not_violated();
}
