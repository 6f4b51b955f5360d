//! The directory of one server: where it is, who owns it, and the files beside the data.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, process};

use nix::libc::O_NOFOLLOW;

use crate::account::Account;
use crate::error::{LabError, LabErrorKind, Result};
use crate::secret::Secret;
use crate::wait;

/// Where servers live whose own directory the unprivileged account cannot reach.
const FALLBACK: &str = "/var/lib/terrace-lab";

/// Lines of a server's log that an error repeats.
const LOG_LINES: usize = 15;

/// How long a lock may be held by chance before somebody else counts as its holder.
const LOCK_WITHIN: Duration = Duration::from_millis(500);

/// A server's directory: `data/`, `password`, `port`, `lock`, `server.log` and what an engine adds.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    account: Option<Account>,
}

/// Held while a server runs in a home: nobody else starts one there.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Home {
    /// Creates the directory where it is missing, or its replacement where the account that the
    /// server will run under cannot reach it.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let new = !directory.exists();
        create_directory(directory, 0o755)?;
        let path = directory.canonicalize().map_err(LabError::file("open", directory))?;
        let account = Account::for_directory(&path)?;
        let home = Self { path, account };
        home.take_over()?;
        if home.is_reachable() {
            return Ok(home);
        }
        if new {
            let _kept_when_not_empty = fs::remove_dir(&home.path);
        }
        let moved = Path::new(FALLBACK).join(format!("{:016x}", stable_hash(&home.path)));
        create_directory(Path::new(FALLBACK), 0o711)?;
        create_directory(&moved, 0o700)?;
        tracing::info!(
            asked = %home.path.display(),
            used = %moved.display(),
            "the account of the server cannot reach the directory: another one is used"
        );
        let account = Account::for_directory(&moved)?;
        let home = Self { path: moved, account };
        home.take_over()?;
        Ok(home)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the engine keeps its data.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Makes the directory of the data for engines that do not make their own.
    pub(crate) fn create_data(&self) -> Result<()> {
        let data = self.data();
        create_directory(&data, 0o700)?;
        self.own(&data).map_err(LabError::file("give the server", &data))
    }

    /// A program that runs under the server's account, in the home, in a process group of its own
    /// (Ctrl-C in a terminal must not end a server before Terrace has drained), with messages in
    /// English and without the caller's PostgreSQL variables.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.path).env("LC_ALL", "C").env("HOME", &self.path).process_group(0);
        for (name, _) in env::vars_os() {
            if name.as_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// Refuses when another process runs a server here; the lock ends with its holder.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let path = self.path.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(&path)
            .map_err(LabError::file("open", &path))?;
        self.own(&path).map_err(LabError::file("give the server", &path))?;
        // A child that another thread is starting holds copies of all files until it runs its program.
        let locked = wait::until(LOCK_WITHIN, || match file.try_lock() {
            Err(TryLockError::WouldBlock) => None,
            other => Some(other),
        });
        match locked.unwrap_or(Err(TryLockError::WouldBlock)) {
            Ok(()) => {
                let content = format!("{}\n", process::id());
                let written = file.set_len(0).and_then(|()| file.write_all(content.as_bytes()));
                written.map_err(LabError::file("write", &path))?;
                Ok(Lock { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _unknown = file.read_to_string(&mut holder);
                let place = self.path.display();
                let message = format!("process {} runs a server in {place}", holder.trim());
                let next = "stop that process, or give this one another directory";
                Err(LabError::new(LabErrorKind::DirectoryInUse, message, next))
            }
            Err(TryLockError::Error(source)) => Err(LabError::file("lock", &path)(source)),
        }
    }

    /// The content of a small file of this home, without the end of its line.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(content) => Ok(Some(content.trim_end().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LabError::file("read", &path)(error)),
        }
    }

    /// Writes a file of mode 0600 that belongs to the server's account: whole or not at all.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path.join(name);
        let draft = path.with_extension("draft");
        let written = || {
            let mut file = create_private(&draft)?;
            self.own(&draft)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(path.parent().unwrap_or(&self.path))?.sync_all()
        };
        written().map_err(LabError::file("write", &path))
    }

    /// The password of this home's server, drawn at random the first time.
    pub(crate) fn password(&self) -> Result<Secret> {
        if let Some(password) = self.read("password")?.filter(|known| !known.is_empty()) {
            return Ok(Secret::new(password));
        }
        let password = random_name()?;
        self.write("password", &format!("{password}\n"))?;
        Ok(Secret::new(password))
    }

    /// An empty log; the one of the last start stays beside it as `server.log.1`.
    pub(crate) fn new_log(&self) -> Result<File> {
        let path = self.path.join("server.log");
        let _none_yet = fs::rename(&path, self.path.join("server.log.1"));
        let created = create_private(&path).and_then(|file| self.own(&path).map(|()| file));
        created.map_err(LabError::file("write", &path))
    }

    /// The end of the log, a line each, indented.
    pub(crate) fn log_tail(&self) -> String {
        let content = fs::read(self.path.join("server.log")).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        let lines: Vec<&str> = content.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        tail.iter().map(|line| format!("  {line}\n")).collect::<String>().trim_end().to_owned()
    }

    /// The home belongs to the account that the server runs under.
    fn take_over(&self) -> Result<()> {
        self.own(&self.path).map_err(LabError::file("give the server", &self.path))
    }

    /// Gives the server a directory with all that is in it.
    pub(crate) fn own_all(&self, path: &Path) -> Result<()> {
        self.own(path).map_err(LabError::file("give the server", path))?;
        if path.is_symlink() || !path.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(path).map_err(LabError::file("read", path))? {
            self.own_all(&entry.map_err(LabError::file("read", path))?.path())?;
        }
        Ok(())
    }

    fn own(&self, path: &Path) -> std::io::Result<()> {
        match &self.account {
            Some(account) => lchown(path, Some(account.uid), Some(account.gid)),
            None => Ok(()),
        }
    }

    /// Asks a process of the account itself: modes, lists and mounts all have a say.
    fn is_reachable(&self) -> bool {
        if self.account.is_none() {
            return true;
        }
        let mut probe = self.command(Path::new("/bin/sh"));
        probe.args(["-c", r#"cd "$1" && test -w ."#, "sh"]).arg(&self.path).current_dir("/");
        probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    }
}

/// 128 random bits as 32 hexadecimal digits, from the system.
pub(crate) fn random_name() -> Result<String> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    let filled = File::open(source).and_then(|mut file| file.read_exact(&mut bytes));
    filled.map_err(LabError::file("read", source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Never through a symbolic link: root writes here into a directory of another account.
fn create_private(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(path)?;
    // A file of an earlier run may have had another mode.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Parents get the mode that the process's mask leaves; the directory itself gets `mode`.
fn create_directory(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let created = DirBuilder::new().recursive(true).mode(0o755).create(path);
    created
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(LabError::file("create", path))
}

/// FNV-1a (64 bits): the same directory has the same replacement in every build.
fn stable_hash(path: &Path) -> u64 {
    path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(stable_hash(Path::new("a")), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(stable_hash(Path::new("foobar")), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_password_is_private_and_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home::open(directory.path()).expect("a home");
        let password = home.password().expect("a password");
        assert_eq!(password.reveal().len(), 32);
        assert_eq!(home.password().expect("the same"), password);
        let file = home.path().join("password").metadata().expect("a file");
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn one_lock_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home::open(directory.path()).expect("a home");
        let lock = home.lock().expect("the first");
        let refused = home.lock().expect_err("the second");
        assert_eq!(refused.kind(), LabErrorKind::DirectoryInUse);
        assert!(refused.to_string().contains(&format!("process {}", process::id())));
        drop(lock);
        home.lock().expect("after the first");
    }
}
