//! The little that is asked of a file system: one directory and its files.
//!
//! A trait, so that the tests can put a disk underneath that loses its power at every single step, keeps what was synced and
//! of the rest what it likes.

use std::fmt::Debug;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
use rustix::io::Errno;

/// A directory.
pub trait Storage: Send + Sync + Debug {
    /// An empty file under this name; one that is there is emptied. Its name is durable after [`Storage::sync`].
    ///
    /// # Errors
    /// Those of the file system.
    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>>;

    /// The file of this name.
    ///
    /// # Errors
    /// `NotFound`; those of the file system.
    fn open(&self, name: &str) -> io::Result<Box<dyn StorageFile>>;

    /// Gives a file another name; a file that has it is replaced, in one step. Durable after [`Storage::sync`].
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file, if it is there. Durable after [`Storage::sync`].
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of all files.
    ///
    /// # Errors
    /// Those of the file system.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Makes the names durable.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync(&self) -> io::Result<()>;
}

/// A file. Its content is durable after [`StorageFile::sync`]; before, any part of what was written may be.
pub trait StorageFile: Send + Sync + Debug {
    /// Reads up to `into.len()` bytes; fewer only at the file's end.
    ///
    /// # Errors
    /// Those of the file system.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Writes, and makes the file longer if need be.
    ///
    /// # Errors
    /// Those of the file system; a part may have been written.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes `length` bytes zero and gives their room back.
    ///
    /// # Errors
    /// Those of the file system.
    fn zero(&self, at: u64, length: u64) -> io::Result<()>;

    /// Cuts the file off, or makes it longer by zeros.
    ///
    /// # Errors
    /// Those of the file system.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Its length, bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&self) -> io::Result<u64>;

    /// Whether nothing is in it.
    ///
    /// # Errors
    /// Those of the file system.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|length| length == 0)
    }

    /// Makes the content and the length durable.
    ///
    /// # Errors
    /// Those of the file system. What was written since the last sync must be taken for lost then: another sync that
    /// succeeds says nothing about it.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of this host, for one owner alone.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Locked. The kernel lets go of it when the process ends.
    handle: File,
}

impl Directory {
    /// Opens a directory; makes it if it is not there, for the own user alone.
    ///
    /// # Errors
    /// `ResourceBusy` when somebody else has it; those of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::locked(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// The same, but waits until whoever has it lets go of it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn wait(path: &Path) -> io::Result<Self> {
        Self::locked(path, FlockOperation::LockExclusive)
    }

    fn locked(path: &Path, operation: FlockOperation) -> io::Result<Self> {
        ninefold_fault::point("storage.directory")?;
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let handle = File::open(path)?;
        loop {
            match flock(&handle, operation) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, "somebody else works with it"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        // That the directory itself is there has to be durable too.
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            ninefold_fault::point("storage.directory")?;
            File::open(parent)?.sync_all()?;
        }
        Ok(Self { path: path.into(), handle })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str, create: bool) -> io::Result<Box<dyn StorageFile>> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(create)
            .truncate(create)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(self.path.join(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Box::new(file))
    }
}

impl Storage for Directory {
    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        ninefold_fault::point("storage.create")?;
        self.file(name, true)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        self.file(name, false)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        ninefold_fault::point("storage.rename")?;
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        ninefold_fault::point("storage.remove")?;
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        ninefold_fault::point("storage.sync")?;
        self.handle.sync_all()
    }
}

impl StorageFile for File {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match FileExt::read_at(self, &mut into[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        ninefold_fault::point("storage.write")?;
        self.write_all_at(bytes, at)
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        ninefold_fault::point("storage.zero")?;
        match fallocate(self, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, length) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
                let mut done = 0;
                while done < length {
                    let part = (length - done).min(ZEROS.len() as u64);
                    self.write_all_at(&ZEROS[..part as usize], at + done)?;
                    done += part;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        ninefold_fault::point("storage.cut")?;
        File::set_len(self, length)
    }

    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|found| found.len())
    }

    fn sync(&self) -> io::Result<()> {
        ninefold_fault::point("storage.sync-file")?;
        self.sync_data()
    }
}
