//! Tells the program what it was built from. The names begin otherwise than those of settings: cargo also
//! gives them to what it runs.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=BUILT_FROM_COMMIT={}", commit());
    println!("cargo::rustc-env=BUILT_WITH_FEATURES={}", features());
}

/// The commit of a release build. Other builds do not ask, or each commit would build them anew.
fn commit() -> String {
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return "debug build".into();
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "no commit".into())
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The cargo features that were chosen.
fn features() -> String {
    let name = |(name, _): (String, String)| {
        Some(format!(" {}", name.strip_prefix("CARGO_FEATURE_")?.to_lowercase()))
    };
    let mut names = std::env::vars().filter_map(name).filter(|name| name != " default");
    let names = names.by_ref().collect::<std::collections::BTreeSet<_>>();
    if names.is_empty() { " none".into() } else { names.into_iter().collect() }
}
