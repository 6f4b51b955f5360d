//! Where addresses are, by a file of the MaxMind DB format that may be replaced while it is used.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use maxminddb::{MaxMindDbError, PathElement, Reader};
use terrace_core::{Inspection, Result, Runtime, Status, Task};

use crate::file_state::FileState;

/// Countries and continents of addresses.
///
/// A file that is missing or damaged costs nothing but its answers: an address is then in no place, and
/// the inspection says why.
#[derive(Debug)]
pub(crate) struct Places {
    file: Arc<File>,
    /// Looks for a new file.
    _task: Task,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    loaded: ArcSwap<Loaded>,
    /// Whether a look into the file that is loaded has failed.
    is_damaged: AtomicBool,
}

/// What was read last.
#[derive(Debug)]
struct Loaded {
    reader: Result<Reader<Vec<u8>>, String>,
    state: FileState,
}

/// Where files have the codes of a place, the nearest first.
const CODES: [&[PathElement<'_>]; 6] = [
    &[PathElement::Key("country"), PathElement::Key("iso_code")],
    &[PathElement::Key("country_code")],
    &[PathElement::Key("country")],
    &[PathElement::Key("continent"), PathElement::Key("code")],
    &[PathElement::Key("continent_code")],
    &[PathElement::Key("continent")],
];

impl Places {
    /// How often a look is taken whether the file was replaced.
    const LOOK: Duration = Duration::from_secs(2);

    /// Reads the file, and its successors.
    pub(crate) fn in_file(path: PathBuf, runtime: &Runtime) -> Self {
        let loaded = ArcSwap::from_pointee(Loaded::from(&path));
        let file = Arc::new(File { path, loaded, is_damaged: AtomicBool::new(false) });
        file.tell();
        let (weak, clock) = (Arc::downgrade(&file), runtime.clone());
        let task = runtime.keep("geoip file", move || {
            let (weak, clock) = (weak.clone(), clock.clone());
            async move {
                loop {
                    clock.sleep(Self::LOOK).await;
                    let Some(file) = weak.upgrade() else { return Ok(()) };
                    file.look();
                }
            }
        });
        Self { file, _task: task }
    }

    /// Why a file cannot be used; `None` when it can.
    pub(crate) fn examine(path: &Path) -> Option<String> {
        Loaded::from(path).reader.err()
    }

    /// What the file answers for the codes of an address's place, asked from the country upwards.
    pub(crate) fn find<T>(&self, address: IpAddr, of: impl Fn(&str) -> Option<T>) -> Option<T> {
        let loaded = self.file.loaded.load();
        let reader = loaded.reader.as_ref().ok()?;
        let found = look_up(reader, address.to_canonical(), of);
        if let Err(error @ MaxMindDbError::InvalidDatabase { .. }) = &found
            && !self.file.is_damaged.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "the geoip file is damaged; put a whole one in its place");
        }
        // Another error says that a file of IPv4 was asked for IPv6.
        found.ok().flatten()
    }

    /// Takes a look now.
    #[cfg(test)]
    pub(crate) fn look(&self) {
        self.file.look();
    }

    /// How the file does.
    pub(crate) fn inspect(&self) -> Inspection {
        let tree = Inspection::new("geoip").text("file", self.file.path.display());
        match &self.file.loaded.load().reader {
            Err(why) => tree.status(Status::Degraded, why.clone()),
            Ok(_) if self.file.is_damaged.load(Ordering::Relaxed) => {
                let note = "the geoip file is damaged; put a whole one in its place";
                tree.status(Status::Degraded, note)
            }
            Ok(reader) => tree.fact("built", reader.metadata().build_epoch),
        }
    }
}

fn look_up<T>(
    reader: &Reader<Vec<u8>>,
    address: IpAddr,
    of: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, MaxMindDbError> {
    let found = reader.lookup(address)?;
    for path in CODES {
        match found.decode_path::<&str>(path) {
            Ok(code) => {
                if let Some(answer) = code.and_then(&of) {
                    return Ok(Some(answer));
                }
            }
            // Other files have something else under this name.
            Err(MaxMindDbError::Decoding { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

impl File {
    /// Reads the file again if it is another one.
    fn look(&self) {
        if FileState::at(&self.path) == self.loaded.load().state {
            return;
        }
        self.loaded.store(Arc::new(Loaded::from(&self.path)));
        self.is_damaged.store(false, Ordering::Relaxed);
        self.tell();
    }

    fn tell(&self) {
        let file = self.path.display();
        match &self.loaded.load().reader {
            Ok(_) => tracing::info!(%file, "places are looked up"),
            Err(why) => tracing::warn!("{why}"),
        }
    }
}

impl Loaded {
    fn from(path: &Path) -> Self {
        let state = FileState::at(path);
        let reader = Reader::open_readfile(path).map_err(|error| {
            format!(
                "the geoip file {} cannot be used ({error}); requests go on by the next rule. Put a \
                 whole file there, or leave regions.geoip_file out",
                path.display()
            )
        });
        Self { reader, state }
    }
}
