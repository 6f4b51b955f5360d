//! Backups that only who has the key can read.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::backup::{backup, command};
use super::{Program, Stores};

/// A file with a key made of one letter.
fn key(directory: &Path, letter: &str) -> String {
    let path = directory.join(format!("key-{letter}"));
    std::fs::write(&path, format!("{}\n", letter.repeat(64))).expect("a key");
    path.to_string_lossy().into_owned()
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory").flatten();
    let below = entries.map(|entry| entry.path());
    below.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn has(path: &Path, text: &str) -> bool {
    let bytes = std::fs::read(path).expect("a file");
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

async fn says(program: &Program, key: &str) -> Value {
    let answer = program.get(&format!("/v1/records/{key}")).await;
    answer.json::<Value>().await.expect("a record")["value"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_with_a_key_opens_with_that_key_alone_and_whole_alone() {
    const SECRET: &str = "a-secret-that-nobody-else-should-read";
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let data = at.join("data");
    let stores = Stores::Embedded(&data);
    let program = Program::serve(4, &stores).await;
    let body = json!({"key": SECRET, "value": SECRET});
    let sent = program.client.post(format!("{}/write", program.url)).json(&body).send().await;
    assert_eq!(sent.expect("an answer").status(), 200);
    let (own, other) = (key(at, "a"), key(at, "b"));
    let run = async |work: &[&str]| backup(command(&stores, at, work)).await;

    let made = run(&["create", "4", "--key-file", &own]).await.expect("a backup");
    let name = made["name"].as_str().expect("a name").to_owned();
    let place = at.join("backups").join(&name);
    let all = files(&place);
    assert!(all.len() > 3 && all.iter().all(|path| !has(path, SECRET)), "{all:?}");
    let catalogue = place.join("backup.json");
    assert!(!has(&catalogue, "sha256") && !has(&catalogue, "history"));
    let listed = run(&["list"]).await.expect("a list");
    assert_eq!(listed["encrypted"], json!([{"name": name, "level": 4}]), "{listed}");
    assert_eq!(listed["backups"], json!([]));

    run(&["verify", &name, "--key-file", &own]).await.expect("it is whole");
    let to = at.join("restored");
    let to_text = to.to_string_lossy().into_owned();
    let restore = ["restore", "4", "--backup", &name, "--to", &to_text];
    let with = |key| [restore.as_slice(), &["--key-file", key]].concat();
    let refused = run(&restore).await.expect_err("no key");
    assert!(refused.contains("is encrypted") && refused.contains("--key-file"), "{refused}");
    let refused = run(&with(other.as_str())).await.expect_err("another key");
    assert!(refused.contains("the key is another one"), "{refused}");
    assert!(!to.exists(), "nothing was written");
    run(&with(own.as_str())).await.expect("a restore");
    let restored = Program::serve(4, &Stores::Embedded(&to)).await;
    assert_eq!(says(&restored, SECRET).await, SECRET);
    run(&["drill", "4", "--key-file", &own]).await.expect("a drill");
    run(&["drill", "4", "--backup", &name, "--key-file", &own]).await.expect("a drill of it");

    // One that can be read was put in its place, or the key is named by mistake.
    let plain = run(&["create", "4"]).await.expect("a backup");
    let plain = plain["name"].as_str().expect("a name");
    let refused = run(&["verify", plain, "--key-file", &own]).await.expect_err("a plain one");
    assert!(refused.contains("is not encrypted"), "{refused}");

    damaged(&place, &name, &own, &stores, at).await;
}

/// What is cut, or is another file of the same backup, is found before any of it is served.
async fn damaged(place: &Path, name: &str, own: &str, stores: &Stores<'_>, at: &Path) {
    let to = at.join("damaged").to_string_lossy().into_owned();
    let run = async |work: &[&str]| backup(command(stores, at, work)).await;
    let shards = files(place).into_iter().filter(|path| !path.ends_with("backup.json"));
    let shards = shards.collect::<Vec<_>>();
    let [one, two] = [&shards[0], &shards[1]].map(|path| std::fs::read(path).expect("a file"));
    // Within its last piece, between two of them where it has two, and another one.
    for bytes in [&one[..one.len() - 1], one.get(..65_552).unwrap_or(&one[..1]), &two] {
        std::fs::write(&shards[0], bytes).expect("a file");
        let faults = run(&["verify", name, "--key-file", own]).await.expect_err("a fault");
        assert!(faults.contains("1 faults"), "{faults}");
        let restore = ["restore", "4", "--backup", name, "--to", &to, "--key-file", own];
        let refused = run(&restore).await.expect_err("a fault");
        assert!(refused.contains("is not as it was made"), "{refused}");
        assert!(!Path::new(&to).exists(), "nothing is left");
    }
}
