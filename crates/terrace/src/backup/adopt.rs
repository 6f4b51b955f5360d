//! Makes restored databases a level's own.

use terrace_core::{Error, ErrorKind, Member, Result, Runtime, ShardState, Version};
use terrace_stores::PostgresStore;

use super::Backup;
use crate::levels::{DatabasePlace, Engines};

/// Gives databases that were restored histories of their own, and shards the addresses of the settings: those
/// in the copy are of the originals, which a shard that is missed would be looked for at. Answers how many.
///
/// # Errors
/// `InvalidInput` when the settings name another number of databases, or one that was never restored.
pub async fn adopt(backup: &Backup, engines: &Engines, runtime: &Runtime) -> Result<usize> {
    let restored = engines.named_originals().await?;
    let numbers = restored.iter().map(|it| it.number);
    if !numbers.eq(backup.catalogue.databases.iter().map(|it| it.number)) {
        let message =
            "the settings name other databases than the backup has; name each restored one once";
        return Err(Error::invalid(message));
    }
    for (original, copied) in restored.iter().zip(&backup.catalogue.databases) {
        if *original.history(engines).await? == *copied.history {
            let message =
                "a database is the one that the backup was made of; name the restored ones";
            return Err(Error::invalid(message).with("database", copied.number.to_string()));
        }
    }
    let cluster = format!("shards-{:012x}", runtime.random() >> 16);
    let states = restored.iter().filter_map(|it| it.shard.as_ref());
    let epoch = states.map(|(_, state)| state.epoch).max().unwrap_or(0) + 1;
    let member = |number, address: &String| Member { number, address: address.clone() };
    let members = restored.iter().map(|it| member(it.number, &it.address)).collect::<Vec<_>>();
    for original in &restored {
        if let DatabasePlace::Server(options) = &original.place {
            let store = PostgresStore::connect((**options).clone(), runtime.clone()).await?;
            store.renew_history().await?;
            terrace_core::Store::close(&store).await?;
        }
        if let Some((shard, state)) = &original.shard {
            let (cluster, members) = (cluster.clone(), members.clone());
            let to = ShardState { cluster, members, epoch, ..state.clone() };
            let changed = shard.change(state.epoch, to, Version::NONE).await;
            changed.map_err(|error| match error.kind() {
                ErrorKind::Moved => {
                    Error::invalid("somebody serves a restored shard; stop it first")
                }
                _ => error,
            })?;
        }
    }
    let count = restored.len();
    for original in restored {
        original.close().await?;
    }
    Ok(count)
}
