//! Files that are whole or not there, whatever happens while they are written.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::{AuthorityError, Result, at};

/// A file to be written.
pub(super) struct Fresh<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    pub(super) mode: u32,
}

/// Where a directory is to be, which is known to be possible as far as that can be told.
pub(super) struct Place {
    out: PathBuf,
    /// The same without symbolic links: they stay what they are.
    target: PathBuf,
    parent: PathBuf,
    /// It is filled here. What it is in the end, the old directory or a new one that was not to be, goes with this.
    fresh: PathBuf,
    /// A directory is there.
    there: bool,
}

impl Place {
    /// For a directory that is not there, or has no other files than these.
    pub(super) fn of(out: &Path, names: &[&str]) -> Result<Self> {
        let refuse = |reason: String| AuthorityError::Out { path: out.to_owned(), reason };
        let target = fs::canonicalize(out).unwrap_or_else(|_| out.to_owned());
        let name = target.file_name().ok_or_else(|| refuse("it has no name of its own".into()))?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let there = match fs::read_dir(&target) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry.map_err(at("cannot read", &target))?.file_name();
                    if !names.iter().any(|known| name == *known) {
                        return Err(refuse(format!("it is replaced whole, and has another file: {}", name.display())));
                    }
                }
                true
            }
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Err(refuse("it is not a directory".into()));
            }
            Err(error) => return Err(at("cannot read", &target)(error)),
        };
        fs::create_dir_all(&parent).map_err(at("cannot make", &parent))?;
        let fresh = parent.join(format!(".{}.new", name.display()));
        // What a command that was killed has left.
        remove(&fresh)?;
        DirBuilder::new().mode(0o700).create(&fresh).map_err(at("cannot make", &fresh))?;
        Ok(Self { out: out.to_owned(), target, parent, fresh, there })
    }

    /// Makes the directory with these files, or puts it in the place of the one that is there, at once: who opens the directory finds
    /// the old files or the new ones. `check` looks at it before.
    pub(super) fn put(self, files: &[Fresh<'_>], check: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        for Fresh { name, text, mode } in files {
            write(&self.fresh.join(name), text, *mode)?;
        }
        sync(&self.fresh)?;
        check(&self.fresh)?;
        if self.there {
            if let Ok(old) = fs::metadata(&self.target) {
                let mode = Permissions::from_mode(old.permissions().mode());
                fs::set_permissions(&self.fresh, mode).map_err(at("cannot change", &self.fresh))?;
            }
            renameat_with(CWD, &self.fresh, CWD, &self.target, RenameFlags::EXCHANGE).map_err(|e| {
                let reason =
                    format!("directories cannot be exchanged there ({e}): write to a new one, then copy the files");
                AuthorityError::Out { path: self.out.clone(), reason }
            })?;
        } else {
            fs::rename(&self.fresh, &self.target).map_err(at("cannot make", &self.target))?;
        }
        sync(&self.parent)?;
        remove(&self.fresh)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = remove(&self.fresh);
    }
}

/// Replaces a file.
pub(super) fn file(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at("cannot remove", &fresh)(error)),
        _ => {}
    }
    write(&fresh, text, mode)?;
    fs::rename(&fresh, path).map_err(at("cannot replace", path))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync(parent),
        _ => sync(Path::new(".")),
    }
}

/// A new file, on the disk.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(at("cannot make", path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at("cannot write", path))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at("cannot remove", dir)(error)),
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at("cannot write", dir))
}
