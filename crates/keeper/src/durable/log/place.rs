//! Where a host keeps a VM's log, and where those are put that somebody has gone back in.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_snapshot::log::{Found, LogError};
use ninefold_snapshot::storage::{Directory, Storage};

use crate::config::KeeperConfig;

/// How long a log that somebody else looks at is waited for, and how long between two attempts.
const LIMIT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(20);
/// A file in a log's directory: whoever begins another log there keeps this one aside.
const KEEP: &str = "keep";
/// Logs of one VM that are kept aside, at most.
const MOST: usize = 4;

/// Where this host keeps the VM's log.
pub fn place(config: &KeeperConfig) -> PathBuf {
    config.host.pool.join("logs").join(config.vm.id.to_string())
}

/// Opens the directory, when whoever had it before has let go of it.
///
/// # Errors
/// Those of the file system.
pub fn open(place: &Path) -> std::io::Result<Arc<dyn Storage>> {
    Directory::wait(place).map(|d| Arc::new(d) as Arc<dyn Storage>)
}

/// The note in a log's directory that the log is kept. It goes when the last of these is dropped, unless somebody has gone back in the log:
/// what has come to nothing leaves no trace.
#[derive(Debug, Clone)]
pub struct Kept(Arc<Noted>);

#[derive(Debug)]
struct Noted {
    place: PathBuf,
    is_there: AtomicBool,
}

impl Kept {
    pub fn of(place: PathBuf) -> Self {
        Self(Arc::new(Noted { place, is_there: AtomicBool::new(false) }))
    }

    /// Notes it.
    ///
    /// # Errors
    /// There are as many aside already as there may be. Those of the file system.
    pub fn note(&self) -> Result<(), String> {
        self.0.is_there.store(true, Ordering::SeqCst);
        keep(&self.0.place)
    }

    /// The VM goes on from it: the next log that begins puts it aside.
    pub fn stays(&self) {
        self.0.is_there.store(false, Ordering::SeqCst);
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if !self.is_there.load(Ordering::SeqCst) {
            return;
        }
        match std::fs::remove_file(self.place.join(KEEP)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, place = %self.place.display(), "the log will be kept aside for nothing");
            }
            _ => {}
        }
    }
}

/// Opens the directory of a log that no thread has: whoever only looks at it lets go of it soon. Nobody waits for one that is in use: the VM
/// is here then.
///
/// # Errors
/// It is in use. Those of the file system.
pub fn open_if_free(place: &Path) -> Result<Arc<dyn Storage>, String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match Directory::open(place) {
            Ok(storage) => return Ok(Arc::new(storage)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(AGAIN);
            }
            Err(error) => return Err(format!("{}: {error}", place.display())),
        }
    }
}

/// Removes the log that is in this directory, with the note that it is kept.
///
/// # Errors
/// As [`Found::remove`].
pub fn remove(storage: &dyn Storage) -> Result<(), LogError> {
    let failed = |source| LogError::Storage { what: "cannot clear", file: "the log's directory".into(), source };
    if storage.names().map_err(failed)?.iter().any(|name| name == KEEP) {
        storage.remove(KEEP).map_err(failed)?;
    }
    Found::remove(storage)
}

/// Where logs are kept aside that somebody has gone back in.
fn aside(place: &Path) -> PathBuf {
    let (parent, name) = (place.parent().unwrap_or(place), place.file_name().unwrap_or_default());
    parent.with_file_name("logs-aside").join(name)
}

/// Notes that the log here is to be kept when another begins. Durable when this returns.
///
/// # Errors
/// There are as many already as there may be. Those of the file system.
fn keep(place: &Path) -> Result<(), String> {
    free(place)?;
    let failed = |e: io::Error| format!("{}: {e}", place.join(KEEP).display());
    std::fs::File::create(place.join(KEEP)).and_then(|f| f.sync_all()).map_err(failed)?;
    std::fs::File::open(place).and_then(|d| d.sync_all()).map_err(failed)
}

/// Where the next one goes.
fn free(place: &Path) -> Result<PathBuf, String> {
    let aside = aside(place);
    let free = (1..=MOST).map(|n| aside.join(n.to_string())).find(|path| !path.exists());
    free.ok_or_else(|| {
        format!("{} has {MOST} logs that were kept: remove one that is of no use any more", aside.display())
    })
}

/// A directory for a log that begins. One that is to be kept is put aside first.
///
/// # Errors
/// Those of the file system; there are as many aside already as there may be.
pub fn begin(place: &Path) -> Result<Arc<dyn Storage>, String> {
    let failed = |e: io::Error| format!("the log's directory: {e}");
    let storage = open(place).map_err(failed)?;
    if !place.join(KEEP).exists() {
        return Ok(storage);
    }
    // It is locked meanwhile: nobody is in it.
    let to = free(place)?;
    let parent = to.parent().unwrap_or(place);
    std::fs::create_dir_all(parent).map_err(failed)?;
    std::fs::rename(place, &to).map_err(failed)?;
    for dir in [Some(parent), parent.parent(), place.parent()].into_iter().flatten() {
        std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(failed)?;
    }
    drop(storage);
    tracing::info!(place = %to.display(), "the log that was gone back in is kept");
    open(place).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log that began here keeps away from the one that was gone back in, and there is a bound to it.
    #[test]
    fn a_log_that_was_gone_back_in_is_kept() {
        let pool = tempfile::tempdir().unwrap();
        let place = pool.path().join("logs/db");
        let content = |n: usize| std::fs::read_to_string(pool.path().join(format!("logs-aside/db/{n}/head.json")));
        for n in 1..=MOST {
            drop(begin(&place).unwrap());
            std::fs::write(place.join("head.json"), n.to_string()).unwrap();
            // Not to be kept: it stays where it is, and is whoever's that begins one.
            drop(begin(&place).unwrap());
            assert!(place.join("head.json").exists() && content(n).is_err());
            keep(&place).unwrap();
            drop(begin(&place).unwrap());
            assert!(std::fs::read_dir(&place).unwrap().next().is_none());
            assert_eq!(content(n).unwrap(), n.to_string());
        }
        assert!(keep(&place).unwrap_err().contains("remove one"));
        std::fs::remove_dir_all(pool.path().join("logs-aside/db/2")).unwrap();
        keep(&place).unwrap();
        drop(begin(&place).unwrap());
        assert!(pool.path().join("logs-aside/db/2/keep").exists());
    }

    /// What has come to nothing leaves no note, which would put logs aside until there is room for none; nor does a log that is removed.
    #[test]
    fn the_note_that_a_log_is_kept_goes_with_an_attempt_that_comes_to_nothing() {
        let pool = tempfile::tempdir().unwrap();
        let place = pool.path().join("logs/db");
        let storage = begin(&place).unwrap();
        let noted = || place.join(KEEP).exists();
        let (ours, theirs) = (Kept::of(place.clone()), Kept::of(place.clone()));
        // One that has not come so far has none to take away.
        theirs.note().unwrap();
        drop(ours);
        assert!(noted());
        // The thread is done, and the claim is to come.
        drop(theirs.clone());
        assert!(noted());
        drop(theirs);
        assert!(!noted());
        let gone_back = Kept::of(place.clone());
        gone_back.note().unwrap();
        gone_back.stays();
        drop(gone_back);
        assert!(noted());
        remove(&*storage).unwrap();
        assert!(!noted());
        remove(&*storage).unwrap();
    }
}
