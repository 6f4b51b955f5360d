//! Tells a file from its successor, for files that are replaced while they are in use.

use std::path::Path;
use std::time::SystemTime;

/// When a file was written and how long it is; nothing where there is none.
///
/// It is taken before the file is read, so what is written meanwhile is looked at once more. Links are
/// followed: Kubernetes replaces the secrets of a pod by moving a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileState(Option<(SystemTime, u64)>);

impl FileState {
    /// Of this file now.
    pub(crate) fn at(path: &Path) -> Self {
        let known = std::fs::metadata(path).ok();
        Self(known.and_then(|known| Some((known.modified().ok()?, known.len()))))
    }
}
