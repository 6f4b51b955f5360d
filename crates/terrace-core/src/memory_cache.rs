//! placeholder
#![allow(missing_docs)]
/// placeholder
#[derive(Debug)]
pub struct MemoryCache;
/// placeholder
#[derive(Debug)]
pub struct MemoryCacheOptions;
