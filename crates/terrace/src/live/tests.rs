//! The loop over a level of memory: nothing without a watcher, and the level's own figures with one.

use std::collections::HashMap;

use serde_json::Value;
use terrace_core::MemoryStore;

use super::*;
use crate::config::{Config, Mode};
use crate::http::{Guards, Limits, Records};
use crate::levels::level;

/// A level of memory, which counts how often it is looked at.
#[derive(Debug)]
struct Counted(Arc<dyn Store>, Mutex<u32>);

impl Whole for Counted {
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        *self.1.lock().expect("no panic") += 1;
        Store::inspect(&*self.0)
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.0.close()
    }
}

async fn live(number: u8) -> (Arc<Live>, Arc<Counted>, tempfile::TempDir) {
    let runtime = Runtime::system();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let store: Arc<dyn Store> = Arc::new(terrace_layers::Observe::new(store, runtime.clone()));
    let whole = Arc::new(Counted(Arc::clone(&store), Mutex::new(0)));
    let service = Service {
        name: "0-single-db",
        faces: vec![Face::Records(Arc::new(Records::of(store)))],
        whole: Arc::clone(&whole) as _,
        guards: Guards::default(),
        limits: Limits::default(),
        tls: None,
        runtime: runtime.clone(),
    };
    let level = level(number).expect("a level");
    let watched = Watched { level, url: String::new(), keyed: false, service };
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.stores.data_dir = directory.path().into();
    let servers = Servers::start(&config, Mode::Embedded, false).await.expect("files");
    (Arc::new(Live::new(vec![watched], &servers, "secret".into(), runtime)), whole, directory)
}

/// What a browser makes of the frames.
#[derive(Default)]
struct Seen {
    places: HashMap<(String, String), usize>,
    values: Vec<u64>,
}

impl Seen {
    fn take(&mut self, frame: &Frame) {
        let text = std::str::from_utf8(&frame.text).expect("text");
        let data = text.split_once("data: ").expect("data").1;
        let data: Value = serde_json::from_str(data).expect("JSON");
        if text.contains("event: whole") {
            self.values = serde_json::from_value(data["values"].clone()).expect("numbers");
            let mut at = 0;
            for part in data["parts"][0].as_array().expect("parts") {
                for (place, figure) in
                    part["figures"].as_array().expect("figures").iter().enumerate()
                {
                    let text = |value: &Value| value.as_str().expect("a name").to_owned();
                    self.places.insert((text(&part["name"]), text(&figure[0])), at + 1 + place);
                }
                at += 1 + part["figures"].as_array().expect("figures").len();
            }
            return;
        }
        for pair in data["v"].as_array().expect("pairs").chunks(2) {
            let at = usize::try_from(pair[0].as_u64().expect("a place")).expect("small");
            self.values[at] = pair[1].as_u64().expect("a number");
        }
    }

    fn figure(&self, part: &str, name: &str) -> u64 {
        self.values[self.places[&(part.to_owned(), name.to_owned())]]
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_looked_at_while_nobody_looks() {
    let (live, whole, _directory) = live(0).await;
    let looks = || *whole.1.lock().expect("no panic");
    live.runtime.sleep(Duration::from_secs(10)).await;
    assert_eq!(looks(), 0);
    let (_, mut news) = live.watch(None);
    for _ in 0..4 {
        news.recv().await.expect("a frame");
    }
    assert_eq!(looks(), 4);
    drop(news);
    live.runtime.sleep(Duration::from_secs(60)).await;
    assert_eq!(looks(), 4);
    // Somebody else begins it again, once however many there are.
    let (first, mut news) = live.watch(None);
    let (_, also) = live.watch(None);
    assert_eq!(first.len(), 1);
    news.recv().await.expect("a frame");
    live.runtime.sleep(Duration::from_millis(1_900)).await;
    assert_eq!(looks(), 4 + 4);
    drop((news, also));
}

#[tokio::test(start_paused = true)]
async fn traffic_is_judged_and_ends_with_the_last_one_who_looks() {
    let (live, whole, _directory) = live(0).await;
    let (first, mut news) = live.watch(None);
    let mut seen = Seen::default();
    first.iter().for_each(|frame| seen.take(frame));
    let order = Order { profile: Profile::Reads, rate: 100 };
    live.order(0, Some(order)).await.expect("an order");
    for _ in 0..20 {
        seen.take(&news.recv().await.expect("a frame"));
    }
    // What the page shows is what the level says, within one frame.
    let figure = async |name: &str| {
        let tree = Store::inspect(&*whole.0).await;
        tree.find("observe").and_then(|it| it.number(name)).expect("a figure")
    };
    for name in ["reads", "writes"] {
        let (before, says) = (seen.figure("observe", name), figure(name).await);
        seen.take(&news.recv().await.expect("a frame"));
        let after = seen.figure("observe", name);
        assert!(before <= says && says <= after, "{name}: {before}, {says}, {after}");
        assert!(after > before || name == "writes", "{name}: {before}, {after}");
        let sent = seen.figure("traffic", name);
        assert!(after.abs_diff(sent) <= 1, "{name}: {sent} sent, {after} seen");
    }
    let (judged, reads) = (seen.figure("traffic", "judged"), seen.figure("traffic", "reads"));
    assert!(judged == reads && judged > 500, "{judged} of {reads}");
    assert_eq!((seen.figure("traffic", "violations"), seen.figure("traffic", "failed")), (0, 0));
    assert!(live.violations().is_empty());
    let keys = || async {
        let scan = terrace_core::Scan::prefix("live:");
        let page = whole.0.scan(&scan, &terrace_core::ReadOptions::default()).await;
        page.expect("a page").records.len()
    };
    assert!(keys().await > 0);
    drop(news);
    live.runtime.sleep(Duration::from_secs(2)).await;
    let ended = figure("reads").await;
    live.runtime.sleep(Duration::from_secs(60)).await;
    assert_eq!(figure("reads").await, ended);
    assert_eq!(keys().await, 0, "it leaves nothing behind");
}

#[tokio::test(start_paused = true)]
async fn traffic_is_for_levels_that_are_served() {
    let (live, ..) = live(0).await;
    let order = Order { profile: Profile::Mixed, rate: 1 };
    assert_eq!(live.order(7, Some(order)).await, Err(Refused::NoSuchLevel));
    assert_eq!(live.break_server(0, Duration::from_secs(1)), None);
}
