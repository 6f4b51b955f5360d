//! A list of one user's transactions as the text of a value, for caches.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Amount, Kind, Posting, Transaction};
use crate::{Error, ErrorKind, Key, Result, Value};

/// All but the user, who is the key of the list. Names would be half of the text.
#[derive(Serialize, Deserialize)]
struct Item(u64, Amount, String, i64);

/// The list as a value.
///
/// # Errors
/// `InvalidInput` for more than fits into a value: a thousand always do.
pub fn to_value(transactions: &[Transaction]) -> Result<Value> {
    let item = |it: &Transaction| {
        let Posting { amount, kind, .. } = &it.posting;
        Item(it.id, *amount, kind.as_str().to_owned(), it.created_at.as_microsecond())
    };
    let items = transactions.iter().map(item).collect::<Vec<_>>();
    let text = serde_json::to_string(&items);
    Value::new(text.map_err(|error| unreadable().caused_by(error))?)
}

/// The list of this user in a value.
///
/// # Errors
/// `Corrupt` for a value that [`to_value`] has not made.
pub fn of_value(user: &Key, value: &Value) -> Result<Vec<Transaction>> {
    let items = serde_json::from_str::<Vec<Item>>(value.as_str());
    let items = items.map_err(|error| unreadable().caused_by(error))?;
    let transaction = |Item(id, amount, kind, micros): Item| {
        let created_at = Timestamp::from_microsecond(micros);
        let created_at = created_at.map_err(|error| unreadable().caused_by(error))?;
        let posting = Posting { user: user.clone(), amount, kind: Kind::new(&kind)? };
        Ok(Transaction { id, posting, created_at })
    };
    items.into_iter().map(transaction).collect()
}

fn unreadable() -> Error {
    Error::new(ErrorKind::Corrupt, "a cached list of transactions cannot be read; clear the cache")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_list_fits_into_a_value() {
        let user = Key::new("u").unwrap();
        // Characters that have the longest escapes.
        let kind = Kind::new(&"\u{1}".repeat(Kind::MAX_CHARS)).unwrap();
        let posting = Posting { user: user.clone(), amount: Amount::LIMIT, kind };
        let created_at = Timestamp::from_microsecond(1_700_000_000_000_001).unwrap();
        let one = Transaction { id: u64::MAX, posting, created_at };
        let all = vec![one; 1000];
        assert_eq!(of_value(&user, &to_value(&all).unwrap()).unwrap(), all);
        assert!(of_value(&user, &Value::new("{}").unwrap()).is_err());
    }
}
