//! The races that fill the memory with something old, forced by holding calls.

use super::*;

/// A reader is held between load and fill while this instance writes.
async fn reader_held_during_an_own_write() -> Option<u64> {
    let (store, mut hand, _feed) = scripted().await;
    let key = key("a");
    let (old, ()) = tokio::join!(store.get(&key), async {
        let held = hand.read().await;
        let (receipt, ()) = tokio::join!(store.put(key.clone(), value("2")), async {
            hand.write().await.applied(2);
        });
        receipt.unwrap();
        held.found(&[("a", "1", 1)]);
    });
    old.unwrap();
    near(&store, &key)
}

/// The same while another instance writes, of which only the feed tells.
async fn reader_held_during_messages(make: Make, messages: &[Notice]) -> Option<u64> {
    let (store, mut hand, feed) = scripted_by(make);
    feed.send(Notice::Connected);
    trusted(&store).await;
    let key = key("a");
    let (old, ()) = tokio::join!(store.get(&key), async {
        let held = hand.read().await;
        messages.iter().for_each(|message| feed.send(message.clone()));
        sleep(Duration::from_millis(1)).await;
        held.found(&[("a", "1", 1)]);
    });
    old.unwrap();
    near(&store, &key)
}

fn written() -> Notice {
    Notice::Written { number: 1, keys: vec![(key("a"), Version::new(2))] }
}

/// The connection breaks and stands again; the message that mattered came in between.
const RECONNECT: [Notice; 2] = [Notice::Disconnected, Notice::Connected];

#[tokio::test(start_paused = true)]
async fn a_reader_held_between_load_and_fill_keeps_nothing_old() {
    assert_eq!(reader_held_during_an_own_write().await, None);
    assert_eq!(reader_held_during_messages(NearCache::new, &[written()]).await, None);
    assert_eq!(reader_held_during_messages(NearCache::new, &RECONNECT).await, None);
}

#[cfg(feature = "mutants")]
#[tokio::test(start_paused = true)]
async fn a_fill_without_a_lease_is_caught() {
    let kept = reader_held_during_messages(NearCache::without_leases, &RECONNECT).await;
    assert_eq!(kept, Some(1));
}

/// Two whole stacks: the reader of one is held in the database while the other writes.
#[tokio::test(start_paused = true)]
async fn a_reader_of_one_instance_is_held_while_another_writes() {
    let (cache, database) = (memory_cache(), Arc::<MemoryStore>::default());
    let key = key("a");
    database.put(key.clone(), value("1")).await.unwrap();
    let (held, mut hand) = Scripted::new();
    let runtime = Runtime::system();
    let (options, generations) = (CacheAsideOptions::default(), database.clone());
    let far = CacheAside::new(held, cache.clone(), generations.clone(), options, runtime.clone());
    let options = NearCacheOptions::default();
    let a = NearCache::new(Arc::new(far), cache.clone(), generations, options, runtime);
    trusted(&a).await;
    let b = instance(&cache, &database).await;

    let (old, ()) = tokio::join!(a.get(&key), async {
        let call = hand.read().await;
        let answer = database.read(&call.keys, &call.how).await;
        b.put(key.clone(), value("2")).await.unwrap();
        call.answer(answer);
    });
    assert_eq!(old.unwrap().unwrap().value.as_str(), "1", "it began before the write");
    Runtime::system().spawn("database", hand.pass_on(database)).detach();
    for _ in 0..3 {
        assert_eq!(a.get(&key).await.unwrap().unwrap().value.as_str(), "2");
    }
}
