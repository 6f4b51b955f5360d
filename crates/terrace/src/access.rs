//! Who may do what: keys of clients, what each may touch, and where they are kept.
//!
//! A key is `trc_<id>_<secret><check>`: [`Key`](ApiKey). What is kept of it is a [`Grant`], a record in a
//! store of its own, under the key's id: the digest of the key, its scopes, the prefixes of the records
//! that it may touch, and until when. An instance keeps all grants in memory, in a [`KeyRing`], and reads
//! them again each second. So a request is decided without a question to anybody, and a key that is
//! revoked is refused by every instance within 5 s.
//!
//! A client may also send a token of an identity provider: [`Tokens`]. Whatever was sent, what comes of it is one
//! [`Principal`], and nobody behind this asks which it was.
//!
//! **Fail closed.** What cannot be decided is refused. An instance that cannot read the grants goes on by
//! those it has for [`KeyRing::BELIEVED_FOR`]; then it refuses every key until it can.

mod grant;
mod key;
mod ring;
mod token;

pub use grant::{ClientId, Grant, GrantState, Principal, Scope};
pub use key::{ApiKey, KeyId};
pub use ring::{KeyRing, Refusal, add, change, list};
pub use token::{TokenOptions, Tokens};
