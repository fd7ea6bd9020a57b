//! The snapshots of a host: one directory, one file for each.
//!
//! ```text
//!   DIR/NAME.nfsnap        a snapshot
//!       .new-NAME-RANDOM   one that is being made; swept away at the next open if its maker is dead
//! ```
//!
//! A snapshot appears under its name by one rename(2), after it is synced: it is there whole or not at all. Whoever reads one
//! holds a shared lock on its file; it is removed under an exclusive one. A child that is being made holds its parent open.

use std::fs::{DirBuilder, File};
use std::io::{self, BufWriter};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ninefold_model::SnapshotName;
use ninefold_replica::stream::Hello;
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use crate::file::{FileError, Head, MAX_DEPTH, OnProgress, Parent, Snapshot, Writer, Written};

const NEW: &str = ".new-";
const SUFFIX: &str = ".nfsnap";
const LOCK: &str = ".lock";

/// Why something could not be done with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none of that name.
    #[error("there is no snapshot '{0}'")]
    NotFound(SnapshotName),
    /// The name, or the file, is there already.
    #[error("there is already {0}")]
    Exists(String),
    /// Somebody reads it or makes a snapshot from it.
    #[error("the snapshot '{0}' is in use")]
    Busy(SnapshotName),
    /// Others are made from it.
    #[error("the snapshot '{name}' is the parent of '{child}'")]
    HasChild { name: SnapshotName, child: SnapshotName },
    /// It cannot be read, or not be written.
    #[error("snapshot '{name}'")]
    Snapshot { name: SnapshotName, source: FileError },
    /// A file that is to be imported is no good.
    #[error("{path} cannot be imported")]
    Import { path: PathBuf, source: FileError },
    /// The file system failed.
    #[error("{what} {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

/// The snapshots of a host.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

/// A line of a list.
#[derive(Debug)]
pub struct Listed {
    pub name: SnapshotName,
    /// What is known of it, or why nothing can be.
    pub snapshot: Result<Arc<Snapshot>, StoreError>,
}

impl StoreError {
    /// Whoever was told how far it is wanted no more.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Snapshot { source: FileError::Cancelled, .. } | Self::Import { source: FileError::Cancelled, .. }
        )
    }
}

impl Store {
    /// Opens the directory; makes it if it is not there, for the own user alone. Removes what a crash left half-made.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let failed = io_error("cannot use", root);
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        let root = root.canonicalize().map_err(io_error("cannot use", root))?;
        let store = Self { root };
        store.sweep()?;
        Ok(store)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &SnapshotName) -> PathBuf {
        self.root.join(format!("{name}{SUFFIX}"))
    }

    /// Opens a snapshot and its parents.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while it is being removed, `Snapshot`, `Io`.
    pub fn get(&self, name: &SnapshotName) -> Result<Arc<Snapshot>, StoreError> {
        self.get_below(name, &mut Vec::new())
    }

    /// Opens a snapshot that is an ancestor of those in `children`.
    fn get_below(&self, name: &SnapshotName, children: &mut Vec<SnapshotName>) -> Result<Arc<Snapshot>, StoreError> {
        let file = self.file(name)?;
        lock(&file, FlockOperation::NonBlockingLockShared).map_err(|e| self.locked(name, e))?;
        let find = &mut |parent: &Parent| {
            if children.len() >= MAX_DEPTH {
                return Err(FileError::TooDeep(MAX_DEPTH));
            }
            children.push(name.clone());
            // Roots cannot lead in circles, but those are known last.
            if children.contains(&parent.name) {
                return Err(FileError::damaged(format!("it descends from itself, by '{}'", parent.name)));
            }
            self.get_below(&parent.name, children)
                .map_err(|e| FileError::Parent { name: parent.name.to_string(), source: Box::new(e) })
        };
        let snapshot =
            Snapshot::open(file, find).map_err(|source| StoreError::Snapshot { name: name.clone(), source })?;
        Ok(Arc::new(snapshot))
    }

    fn file(&self, name: &SnapshotName) -> Result<File, StoreError> {
        let path = self.path(name);
        match regular(&path, OFlags::NOFOLLOW) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(StoreError::Snapshot { name: name.clone(), source: FileError::NotWhole }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::NotFound(name.clone())),
            Err(source) => Err(StoreError::Io { what: "cannot open", path, source }),
        }
    }

    fn locked(&self, name: &SnapshotName, error: Errno) -> StoreError {
        match error {
            Errno::WOULDBLOCK => StoreError::Busy(name.clone()),
            other => StoreError::Io { what: "cannot lock", path: self.path(name), source: other.into() },
        }
    }

    /// All snapshots, by name. One that cannot be read is in the list as its error.
    ///
    /// # Errors
    /// `Io`.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        Ok(self.names()?.into_iter().map(|name| Listed { snapshot: self.get(&name), name }).collect())
    }

    fn names(&self) -> Result<Vec<SnapshotName>, StoreError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(io_error("cannot read", &self.root))? {
            let entry = entry.map_err(io_error("cannot read", &self.root))?;
            let name = entry.file_name();
            names.extend(name.to_str().and_then(|n| n.strip_suffix(SUFFIX)?.parse::<SnapshotName>().ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Begins a snapshot. With a parent it holds only what differs.
    ///
    /// # Errors
    /// `Exists`, `Snapshot`, `Io`.
    pub fn create(&self, hello: &Hello, head: &Head, parent: Option<Arc<Snapshot>>) -> Result<Making, StoreError> {
        let mut staged = self.staged(&head.name)?;
        staged._parent.clone_from(&parent);
        let out = staged.file.try_clone().map_err(io_error("cannot make", &staged.path))?;
        let writer = Writer::create(BufWriter::with_capacity(256 << 10, out), hello, head, parent)
            .map_err(|source| StoreError::Snapshot { name: head.name.clone(), source })?;
        Ok(Making { writer, staged })
    }

    /// Takes in a file that was exported, under its own name or another, after all of it was checked.
    ///
    /// # Errors
    /// `Import`: it is no whole, undamaged, stand-alone snapshot. `Exists`, `Io`.
    pub fn import(
        &self,
        path: &Path,
        name: Option<&SnapshotName>,
        told: OnProgress<'_>,
    ) -> Result<SnapshotName, StoreError> {
        let bad = |source| StoreError::Import { path: path.into(), source };
        let file = regular(path, OFlags::empty()).map_err(io_error("cannot open", path))?;
        let file = file.ok_or_else(|| bad(FileError::NotWhole))?;
        let snapshot = Snapshot::open(file, &mut |parent| {
            Err(FileError::Refused(format!(
                "it holds only what differs from '{}': export it with `ninefold snapshot export`",
                parent.name
            )))
        })
        .map_err(bad)?;
        let name = name.unwrap_or(&snapshot.head().name).clone();
        let head = Head { name: name.clone(), ..snapshot.head().clone() };
        let staged = self.staged(&name)?;
        // Written anew rather than copied: so every content is checked, under whatever name, and what a hostile file may hold
        // beside them stays outside.
        let out = staged.file.try_clone().map_err(io_error("cannot make", &staged.path))?;
        snapshot.flatten(BufWriter::with_capacity(256 << 10, out), &head, told).map_err(bad)?;
        staged.publish()?;
        Ok(name)
    }

    /// Writes a snapshot with all that is in its parents to a file elsewhere.
    ///
    /// # Errors
    /// `NotFound`, `Snapshot`, `Exists`, `Io`; nothing is left at `path` then.
    pub fn export(&self, name: &SnapshotName, path: &Path, told: OnProgress<'_>) -> Result<Written, StoreError> {
        let snapshot = self.get(name)?;
        let (Some(file_name), folder) = (path.file_name(), path.parent().unwrap_or(Path::new(""))) else {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a file's name");
            return Err(StoreError::Io { what: "cannot make", path: path.into(), source });
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let hidden = folder.join(format!(".{}-{}", file_name.to_string_lossy(), random(path)?));
        let staged = Staged::new(hidden, path.into(), format!("{}", path.display()))?;
        let out = staged.file.try_clone().map_err(io_error("cannot make", path))?;
        let (_, written) = snapshot
            .flatten(BufWriter::with_capacity(256 << 10, out), &snapshot.head().clone(), told)
            .map_err(|source| StoreError::Snapshot { name: name.clone(), source })?;
        staged.publish()?;
        Ok(written)
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while somebody has it open; `HasChild`; `Io`.
    pub fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        let file = self.file(name)?;
        // With the lock: whoever makes a child holds the parent open until the child can be seen here.
        lock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| self.locked(name, e))?;
        for child in self.names()?.into_iter().filter(|child| child != name) {
            let parent = match Snapshot::head_of(&self.file(&child)?) {
                Ok(head) => head.parent,
                // What is damaged beyond reading depends on nothing any more.
                Err(_) => None,
            };
            if parent.is_some_and(|parent| parent.name == *name) {
                return Err(StoreError::HasChild { name: name.clone(), child });
            }
        }
        let path = self.path(name);
        let removed = ninefold_fault::point("snapshot.remove").and_then(|()| std::fs::remove_file(&path));
        removed.map_err(io_error("cannot remove", &path))?;
        sync_directory(&self.root)
    }

    fn staged(&self, name: &SnapshotName) -> Result<Staged, StoreError> {
        let path = self.path(name);
        // OnProgress early; the rename decides.
        if std::fs::symlink_metadata(&path).is_ok() {
            return Err(StoreError::Exists(format!("a snapshot '{name}'")));
        }
        let hidden = self.root.join(format!("{NEW}{name}-{}", random(&path)?));
        // A sweeper must not come between making the file and locking it.
        let _gate = self.gate(FlockOperation::LockShared)?;
        Staged::new(hidden, path, format!("a snapshot '{name}'"))
    }

    fn gate(&self, operation: FlockOperation) -> Result<File, StoreError> {
        let path = self.root.join(LOCK);
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(io_error("cannot lock", &path))?;
        lock(&file, operation).map_err(|e| io_error("cannot lock", &path)(e.into()))?;
        Ok(file)
    }

    fn sweep(&self) -> Result<(), StoreError> {
        let _gate = self.gate(FlockOperation::LockExclusive)?;
        for entry in std::fs::read_dir(&self.root).map_err(io_error("cannot read", &self.root))? {
            let entry = entry.map_err(io_error("cannot read", &self.root))?;
            let path = entry.path();
            let abandoned = entry.file_name().to_string_lossy().starts_with(NEW)
                && regular(&path, OFlags::NOFOLLOW)
                    .is_ok_and(|f| f.is_some_and(|f| lock(&f, FlockOperation::NonBlockingLockExclusive).is_ok()));
            if abandoned {
                tracing::info!(path = %path.display(), "removing a snapshot that was left half-made");
                match std::fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("cannot remove", &path)(e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// A snapshot that is being made. Dropped before [`Staged::publish`] it leaves nothing.
#[derive(Debug)]
pub struct Making {
    /// What to fill.
    pub writer: Writer<BufWriter<File>>,
    staged: Staged,
}

impl Making {
    /// The parts: the writer, and what publishes the snapshot once the writer has finished.
    pub fn split(self) -> (Writer<BufWriter<File>>, Staged) {
        (self.writer, self.staged)
    }
}

/// A file on its way to its name. Dropped before [`Staged::publish`] it leaves nothing.
#[derive(Debug)]
pub struct Staged {
    /// Locked: tells a sweeper that somebody still works here.
    file: File,
    path: PathBuf,
    place: PathBuf,
    /// For messages.
    what: String,
    published: bool,
    /// Kept open, so that it is not removed before its child can be seen.
    _parent: Option<Arc<Snapshot>>,
}

impl Staged {
    fn new(path: PathBuf, place: PathBuf, what: String) -> Result<Self, StoreError> {
        if std::fs::symlink_metadata(&place).is_ok() {
            return Err(StoreError::Exists(what));
        }
        let open = || File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = ninefold_fault::point("snapshot.staged").and_then(|()| open());
        let file = file.map_err(io_error("cannot make", &path))?;
        let staged = Self { file, path, place, what, published: false, _parent: None };
        ninefold_fault::point("snapshot.lock").map_err(io_error("cannot lock", &staged.path))?;
        lock(&staged.file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| io_error("cannot lock", &staged.path)(e.into()))?;
        Ok(staged)
    }

    /// Makes the file durable and visible. All of it has to be written.
    ///
    /// # Errors
    /// `Exists`, `Io`.
    pub fn publish(mut self) -> Result<(), StoreError> {
        let synced = ninefold_fault::point("snapshot.sync").and_then(|()| self.file.sync_all());
        synced.map_err(io_error("cannot sync", &self.path))?;
        ninefold_fault::point("snapshot.publish").map_err(io_error("cannot make", &self.place))?;
        match renameat_with(CWD, &self.path, CWD, &self.place, RenameFlags::NOREPLACE) {
            Ok(()) => self.published = true,
            Err(Errno::EXIST) => return Err(StoreError::Exists(self.what.clone())),
            Err(error) => return Err(io_error("cannot make", &self.place)(error.into())),
        }
        // Nobody works here any more; who opens it under its name must not find it locked.
        let _ = lock(&self.file, FlockOperation::Unlock);
        sync_directory(self.place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_path_buf();
    move |source| StoreError::Io { what, path, source }
}

/// Opens a file to read it; `None` if something else has that name. A pipe is not waited for.
fn regular(path: &Path, flags: OFlags) -> io::Result<Option<File>> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

fn lock(file: &File, operation: FlockOperation) -> Result<(), Errno> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let opened = ninefold_fault::point("snapshot.name").and_then(|()| File::open(path));
    opened.and_then(|file| file.sync_all()).map_err(io_error("cannot sync", path))
}

/// Random digits for a name.
fn random(path: &Path) -> Result<String, StoreError> {
    crate::random::u128().map(|n| format!("{n:032x}")).map_err(io_error("no random numbers for", path))
}
