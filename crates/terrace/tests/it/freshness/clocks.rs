//! Instances whose wall clock is wrong.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::field::{Field, Instance};
use super::pause;

/// Put before the C library: the time of day is an hour ahead, everything else as it is.
const AN_HOUR_AHEAD: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int outcome = real(clock, time);
    if (outcome == 0 && clock == CLOCK_REALTIME) time->tv_sec += 3600;
    return outcome;
}
"#;

/// Compiles [`AN_HOUR_AHEAD`]; Rust cannot be linked without a C compiler either.
fn an_hour_ahead(directory: &Path) -> PathBuf {
    let (source, library) = (directory.join("ahead.c"), directory.join("ahead.so"));
    std::fs::write(&source, AN_HOUR_AHEAD).expect("a write");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    assert!(compiler.status().expect("cc runs").success());
    library
}

/// The program has taken the library.
fn assert_is_ahead(instance: &Instance) {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", instance.program.pid()));
    assert!(maps.expect("Linux").contains("ahead.so"));
}

/// What a cache says of an entry's age, and does with it, when this instance has filled it.
async fn ages_are_right(filler_is_ahead: bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let library = an_hour_ahead(directory.path());
    let preload = [("LD_PRELOAD", library.to_str().expect("a path"))];
    let field = Field::new(2).await;
    let ahead = if filler_is_ahead { &preload[..] } else { &[] };
    let a = field.instance_with("a", &field.database, ahead).await;
    let b = field.instance("b").await;
    if filler_is_ahead {
        assert_is_ahead(&a);
    }
    a.writes("k", "1").await;
    a.caches("k", "1", "far").await;
    pause(Duration::from_millis(2500)).await;
    let read = b.client.read("k").send().await;
    let bound = Duration::from_millis(1000);
    let bounded = b.client.read("k").max_stale(bound).send().await;
    assert_eq!(read.origin.as_deref(), Some("far"), "{read}");
    let age = read.age.expect("an age");
    assert!((2..=4).contains(&age.as_secs()), "2.5 s old: {read}");
    let too_old = bounded.origin.as_deref() == Some("far");
    assert!(!too_old, "an entry of 2.5 s for max-stale=1000: {bounded}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ages_are_right_where_clocks_agree() {
    ages_are_right(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ages_are_right_when_the_filler_is_an_hour_ahead() {
    ages_are_right(true).await;
}

/// A write that has waited for a moment has not waited for an hour. Nobody flushes, so that some wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_is_not_full_when_an_instance_is_an_hour_ahead() {
    let directory = tempfile::tempdir().expect("a directory");
    let library = an_hour_ahead(directory.path());
    let apart = ("TERRACE_JOURNAL_FLUSHER", "apart");
    let ahead = [("LD_PRELOAD", library.to_str().expect("a path")), apart];
    let field = Field::new(6).await;
    let a = field.instance_with("a", &field.database, &ahead).await;
    let b = field.instance_with("b", &field.database, &[apart]).await;
    assert_is_ahead(&a);
    for number in 0..60 {
        for instance in [&b, &a] {
            let write = instance.client.write(&format!("k{number}"), &number.to_string()).send();
            let write = write.await;
            assert!(write.is_acknowledged(), "{write}");
        }
        pause(Duration::from_millis(25)).await;
    }
}
