//! Notes: small files that say in what state something is. They survive a loss of power, and so does it that they are gone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What of a note is read, bytes.
const MOST: u64 = 256;

/// A note, whether it is there or not.
#[derive(Debug, Clone)]
pub struct Note(PathBuf);

impl Note {
    /// The one at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What it says; nothing if it is not there. One that cannot be read is there.
    pub fn found(&self) -> Option<String> {
        match File::open(&self.0) {
            Ok(file) => {
                let mut text = Vec::new();
                let _ = file.take(MOST).read_to_end(&mut text);
                Some(String::from_utf8_lossy(&text).into_owned())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => Some(String::new()),
        }
    }

    /// Writes it. Durable when this returns.
    ///
    /// # Errors
    /// Those of the file system: it may be there or not.
    pub fn write(&self, text: &str) -> io::Result<()> {
        ninefold_fault::point("note.create")?;
        let mut file = File::create(&self.0)?;
        ninefold_fault::point("note.write")?;
        file.write_all(text.as_bytes())?;
        ninefold_fault::point("note.sync")?;
        file.sync_all()?;
        ninefold_fault::point("note.name")?;
        self.sync()
    }

    /// Removes it, if it is there. Durable when this returns, also if it was removed before.
    ///
    /// # Errors
    /// Those of the file system: it may be there or not, or come back with a loss of power.
    pub fn remove(&self) -> io::Result<()> {
        self.take_away()?;
        self.sync()
    }

    /// Removes it, if it is there. Durable after [`Note::sync`].
    ///
    /// # Errors
    /// Those of the file system: it may be there or not.
    pub fn take_away(&self) -> io::Result<()> {
        ninefold_fault::point("note.remove")?;
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes it durable that it is there, or that it is not.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&self) -> io::Result<()> {
        ninefold_fault::point("note.settle")?;
        let folder = self.0.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}
