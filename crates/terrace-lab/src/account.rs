//! The unprivileged account that servers run under when this process is root.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Uid, User};

use crate::error::{LabError, LabErrorKind, Result};

/// A user and group that a server's process takes before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Account {
    /// `None` when this process is not root: servers then run as the user who started them.
    ///
    /// An unprivileged owner of `directory` keeps it, so that the same data can be used with and
    /// without root. An owner without a name does not: PostgreSQL refuses to run as one.
    pub(crate) fn for_directory(directory: &Path) -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        if let Ok(metadata) = directory.metadata()
            && metadata.uid() != 0
            && matches!(User::from_uid(Uid::from_raw(metadata.uid())), Ok(Some(_)))
        {
            return Ok(Some(Self { uid: metadata.uid(), gid: metadata.gid() }));
        }
        for name in ["postgres", "nobody"] {
            if let Ok(Some(user)) = User::from_name(name) {
                return Ok(Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
            }
        }
        Err(LabError::new(
            LabErrorKind::Io,
            "servers do not run as root, and this system has neither a user `postgres` nor `nobody`",
            "start Terrace as an ordinary user, or create a user `postgres`",
        ))
    }
}
