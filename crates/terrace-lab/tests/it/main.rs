//! Private servers against real PostgreSQL and Redis programs on this machine.

#![expect(clippy::expect_used, reason = "a test that cannot go on fails, its helpers too")]

mod client;
mod mongo;
mod parents_end;
mod postgres;
mod proxy;
mod redis;
mod root;
mod shared;
mod standby;
