//! The databases of a level as a backup needs them: where each is, and how its records are written.

use std::path::PathBuf;
use std::sync::Arc;

use terrace_core::shard::Reserved;
use terrace_core::{
    Error, ErrorKind, Key, Member, Result, SLOTS, Shard, ShardState, SlotSet, Store,
};
use terrace_stores::{PostgresOptions, PostgresStore, SqliteOptions, SqliteStore};

use super::{Database, Engines};

/// Where a database is.
#[derive(Clone, Debug)]
pub enum DatabasePlace {
    /// A SQLite file.
    File(PathBuf),
    /// A schema of a PostgreSQL database.
    Server(Box<PostgresOptions>),
}

/// A database of a level.
pub struct Original {
    /// Which of the level's shards; 0 where there is one database.
    pub number: u16,
    /// The address by which its level names it; empty where there is one database.
    pub address: String,
    /// Where it is.
    pub place: DatabasePlace,
    /// The shard, and what it said of itself.
    pub shard: Option<(Arc<dyn Shard>, ShardState)>,
    /// The right to move slots: nobody has it meanwhile.
    _reserved: Option<Reserved>,
}

impl std::fmt::Debug for Original {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Original").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Original {
    /// Its records, past all caches.
    ///
    /// # Errors
    /// What cannot be reached.
    pub async fn records(&self, of: &Engines) -> Result<Arc<dyn Store>> {
        match &self.shard {
            Some((shard, state)) => Ok(shard.at(state.epoch)),
            None => Ok(self.open(of).await?.store),
        }
    }

    /// The name of its history.
    ///
    /// # Errors
    /// What cannot be reached.
    pub async fn history(&self, of: &Engines) -> Result<Arc<str>> {
        if let Some((shard, _)) = &self.shard {
            return Ok(shard.history());
        }
        let database = self.open(of).await?;
        database.store.close().await?;
        Ok(database.history)
    }

    async fn open(&self, of: &Engines) -> Result<Database> {
        let runtime = of.runtime.clone();
        Ok(match &self.place {
            DatabasePlace::File(path) => {
                Database::sqlite(SqliteStore::open(SqliteOptions::new(path), runtime)?)
            }
            DatabasePlace::Server(options) => {
                Database::postgres(PostgresStore::connect((**options).clone(), runtime).await?)
            }
        })
    }

    /// A key that is this database's and begins so; `None` where none is found.
    ///
    /// # Errors
    /// `InvalidInput` for settings of shards that cannot be read.
    pub fn key(&self, of: &Engines, prefix: &str) -> Result<Option<Key>> {
        let Some((_, state)) = &self.shard else { return Key::new(prefix).map(Some) };
        let partitioner = of.partitioner()?;
        // Ranges and places go by how a key begins.
        let firsts = std::iter::once(String::new())
            .chain(('!'..='~').map(String::from))
            .chain(state.partitioner.split([':', ',']).map(|place| format!("{place}:")));
        for first in firsts {
            for number in 0..100 {
                let key = Key::new(format!("{first}{prefix}-{number}"))?;
                if state.owned.contains(partitioner.slot(&key)) {
                    return Ok(Some(key));
                }
            }
        }
        Ok(None)
    }

    /// Ends connections.
    ///
    /// # Errors
    /// What the shard says.
    pub async fn close(self) -> Result<()> {
        match self.shard {
            Some((shard, _)) => shard.close().await,
            None => Ok(()),
        }
    }
}

impl Engines {
    /// All databases of the level, in the order of their numbers. No slot is moved between them for as long as
    /// they are held.
    ///
    /// # Errors
    /// `InvalidInput` for a level that keeps data in several kinds of engines; `Unavailable` when a database
    /// cannot be reached, or slots are on their way.
    pub async fn originals(&self) -> Result<Vec<Original>> {
        if matches!(self.level, 6..=9) {
            return Err(Error::invalid(format!(
                "level {} keeps data in several engines, which have no point in common; back each up by its \
                 own means (terrace backup knows levels 0 to 5 and 10)",
                self.level
            )));
        }
        let mut found = self.named_originals().await?;
        if found.iter().all(|it| it.shard.is_none()) {
            return Ok(found);
        }
        for Member { number, address } in members(&found) {
            if !found.iter().any(|it| it.number == number) {
                self.find(&address, &mut found).await?;
            }
        }
        let members = members(&found);
        found.retain(|it| members.iter().any(|member| member.number == it.number));
        found.sort_by_key(|it| it.number);
        check(&found, &members)?;
        Ok(found)
    }

    /// The databases that the settings name, and no others that these know of.
    ///
    /// # Errors
    /// As [`Engines::originals`].
    pub async fn named_originals(&self) -> Result<Vec<Original>> {
        let addresses = self.shard_addresses();
        if addresses.is_empty() {
            let place = self.mode.place(self, None).await?;
            let (number, address) = (0, String::new());
            return Ok(vec![Original { number, address, place, shard: None, _reserved: None }]);
        }
        let mut found = Vec::new();
        for address in &addresses {
            self.find(address, &mut found).await?;
        }
        found.sort_by_key(|it| it.number);
        Ok(found)
    }

    /// Opens a shard and reserves it; one that was never served is refused.
    async fn find(&self, address: &str, found: &mut Vec<Original>) -> Result<()> {
        let shard = self.mode.shard(self, address, false).await?;
        let reserved = Some(shard.reserve().await?);
        let state = shard.state().await?;
        let state = state.ok_or_else(|| {
            Error::invalid("a database is no shard of the level yet; serve the level first")
        })?;
        found.push(Original {
            number: state.number,
            address: address.to_owned(),
            place: self.mode.place(self, Some(address)).await?,
            shard: Some((shard, state)),
            _reserved: reserved,
        });
        Ok(())
    }
}

/// The shards that there are, as the one knows that changed last.
fn members(found: &[Original]) -> Vec<Member> {
    let states = found.iter().filter_map(|it| it.shard.as_ref()).map(|(_, state)| state);
    let latest = states.max_by_key(|state| state.epoch);
    latest.map(|state| state.members.clone()).unwrap_or_default()
}

/// Each shard once, and no slot on its way: a copy of that moment would have slots without an owner.
fn check(found: &[Original], members: &[Member]) -> Result<()> {
    let mut owned = SlotSet::default();
    let mut count = 0;
    for (_, state) in found.iter().filter_map(|it| it.shard.as_ref()) {
        count += state.owned.len();
        owned = owned.with(&state.owned);
    }
    let whole = count == usize::from(SLOTS) && owned.len() == count;
    if found.len() != members.len() || !whole {
        let message = "not every slot of the shards has one owner; end what moves them first (terrace reshard \
                       --resume)";
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    Ok(())
}
