//! The seat of Terrace's proofs: the history of what clients asked and were answered, the faults
//! injected meanwhile, the checkers that hold a history against the guarantee of its level, and the
//! report. None of it is here yet; what the crate holds today is `tests/tidy.rs`, which checks the
//! shape of the whole workspace. It depends on `terrace-core` alone, so that a checker shares no
//! code with what it checks.
