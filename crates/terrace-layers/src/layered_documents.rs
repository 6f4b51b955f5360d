//! Layers over documents: what is read and written passes them, what asks for content does not.

use std::fmt;
use std::sync::Arc;

use terrace_core::{
    BoxFuture, Documents, Inspection, Key, Page, Read, ReadOptions, Receipt, Result, Scan,
    Selection, Store, Write, WriteOptions,
};

/// Documents of which the methods of [`Store`] pass some layers.
///
/// **What it is.** A document store is a [`Store`], so every layer works over it; but what stands on top
/// of the layers is a `Store` only. This joins the two again.
///
/// **On read, on write, on delete.** The layers. **On select, on count.** The engine itself, past all
/// caches.
///
/// **Where it belongs.** At the top of a stack of documents.
#[derive(Debug)]
pub struct LayeredDocuments {
    layers: Arc<dyn Store>,
    engine: Arc<dyn Documents>,
}

impl LayeredDocuments {
    /// These layers, which stand over this engine.
    pub fn new(layers: Arc<dyn Store>, engine: Arc<dyn Documents>) -> Self {
        Self { layers, engine }
    }
}

impl fmt::Display for LayeredDocuments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layers.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for LayeredDocuments {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        self.layers.read(keys, how)
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        self.layers.write(batch, how)
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        self.layers.scan(scan, how)
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.layers.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.layers.close()
    }
}

#[deny(clippy::missing_trait_methods)]
impl Documents for LayeredDocuments {
    fn select<'a>(
        &'a self,
        what: &'a Selection,
        scan: &'a Scan,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Page>> {
        self.engine.select(what, scan, how)
    }

    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        self.engine.count()
    }
}
