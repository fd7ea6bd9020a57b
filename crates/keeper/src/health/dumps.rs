//! The directory of a VM's memory dumps: bounded in number, and never so full that the disk runs out.
//!
//! A dump is written under another name until it is whole. What a crash left under such a name is removed when the next dump
//! begins. Files can be read by their owner only: they hold what the guest held.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What must stay free beside a dump: 128 MiB.
const RESERVE: u64 = 128 << 20;
const EXTENSION: &str = "core";
const DRAFT: &str = "partial";

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("cannot {what} {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{dir} has {free} MiB free, and {needed} are needed")]
    Full { dir: PathBuf, free: u64, needed: u64 },
}

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Dumps {
    dir: PathBuf,
    vm: String,
}

/// A dump that is being written. Dropped before it is finished, it is removed.
#[derive(Debug)]
pub struct Staged {
    pub file: File,
    path: PathBuf,
    dumps: Dumps,
    done: bool,
}

impl Dumps {
    /// The dumps of this VM in `dir`, which is made when it is needed.
    pub fn new(dir: &Path, vm: &str) -> Self {
        Self { dir: dir.to_owned(), vm: vm.to_owned() }
    }

    fn failed(&self, what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DumpError + use<> {
        let path = path.to_owned();
        move |source| DumpError::Io { what, path, source }
    }

    /// Begins a dump of `bytes` bytes of memory. The oldest go when there is no room otherwise, but of `keep` the newest
    /// `keep - 1` stay.
    ///
    /// # Errors
    /// The directory cannot be used, or has too little room.
    pub fn begin(&self, bytes: u64, keep: u32) -> Result<Staged, DumpError> {
        fs::create_dir_all(&self.dir).map_err(self.failed("make", &self.dir))?;
        for left in self.all(DRAFT)? {
            let _ = fs::remove_file(left);
        }
        let needed = bytes.saturating_add(RESERVE);
        if self.free()? < needed {
            self.prune(keep.saturating_sub(1))?;
        }
        let free = self.free()?;
        if free < needed {
            return Err(DumpError::Full { dir: self.dir.clone(), free: free >> 20, needed: needed >> 20 });
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0));
        let newest = self.all(EXTENSION)?.last().and_then(|path| self.number(path));
        let number = next(newest, now);
        let path = self.dir.join(format!("{}-{number:015}.{DRAFT}", self.vm));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(self.failed("make", &path))?;
        Ok(Staged { file, path, dumps: self.clone(), done: false })
    }

    fn free(&self) -> Result<u64, DumpError> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(|e| self.failed("look at", &self.dir)(e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The number in a file's name, if it is one of this VM's.
    fn number(&self, path: &Path) -> Option<u64> {
        let number = path.file_stem()?.to_str()?.strip_prefix(&self.vm)?.strip_prefix('-')?;
        number.bytes().all(|b| b.is_ascii_digit()).then(|| number.parse().ok())?
    }

    /// Files of this VM, oldest first.
    fn all(&self, extension: &str) -> Result<Vec<PathBuf>, DumpError> {
        let entries = fs::read_dir(&self.dir).map_err(self.failed("read", &self.dir))?;
        let found = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == extension));
        let mut found: Vec<_> = found.filter_map(|p| Some((self.number(&p)?, p))).collect();
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    fn prune(&self, keep: u32) -> Result<(), DumpError> {
        let mut all = self.all(EXTENSION)?;
        all.truncate(all.len().saturating_sub(keep as usize));
        for old in all {
            fs::remove_file(&old).map_err(self.failed("remove", &old))?;
        }
        Ok(())
    }
}

/// A dump's number: the time in milliseconds, unless the clock has been set back behind the newest dump. What is newer has the
/// higher number in any case.
fn next(newest: Option<u64>, now_ms: u64) -> u64 {
    newest.map_or(now_ms, |newest| now_ms.max(newest.saturating_add(1)))
}

impl Staged {
    /// The dump is whole: gives it its name, and removes the oldest beyond `keep`. Its path and size.
    ///
    /// # Errors
    /// Of the file system.
    pub fn finish(mut self, keep: u32) -> Result<(PathBuf, u64), DumpError> {
        let path = self.path.with_extension(EXTENSION);
        fs::rename(&self.path, &path).map_err(self.dumps.failed("name", &path))?;
        self.done = true;
        let bytes = self.file.metadata().map_err(self.dumps.failed("look at", &path))?.len();
        self.dumps.prune(keep)?;
        Ok((path, bytes))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn dump(dumps: &Dumps, keep: u32) -> PathBuf {
        let mut staged = dumps.begin(1 << 20, keep).unwrap();
        staged.file.write_all(b"memory").unwrap();
        let (path, bytes) = staged.finish(keep).unwrap();
        assert_eq!(bytes, 6);
        path
    }

    #[test]
    fn the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (Dumps::new(&dir.path().join("d"), "vm"), Dumps::new(&dir.path().join("d"), "vm-1"));
        let theirs = dump(&other, 1);
        let made: Vec<_> = (0..5).map(|_| dump(&ours, 3)).collect();
        assert_eq!(ours.all(EXTENSION).unwrap(), made[2..]);
        assert!(theirs.exists(), "another VM's");
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_dump_old() {
        let dir = tempfile::tempdir().unwrap();
        let dumps = Dumps::new(dir.path(), "vm");
        // Made when the clock was years ahead: with as many digits, and with more.
        for future in [999_999_999_999_998_u64, 1_000_000_000_000_007] {
            let before = dir.path().join(format!("vm-{future:015}.core"));
            fs::write(&before, "before").unwrap();
            let (one, two) = (dump(&dumps, 2), dump(&dumps, 2));
            assert!(
                !before.exists() && one.exists() && two.exists(),
                "the newest are kept, not those with the highest date"
            );
        }
        assert_eq!([next(None, 7), next(Some(3), 7), next(Some(7), 7), next(Some(u64::MAX), 7)], [7, 7, 8, u64::MAX]);
    }

    #[test]
    fn what_is_not_finished_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let dumps = Dumps::new(dir.path(), "vm");
        drop(dumps.begin(0, 3).unwrap());
        assert_eq!(dumps.all(DRAFT).unwrap(), Vec::<PathBuf>::new());
        let left = dir.path().join("vm-000000000000001.partial");
        fs::write(&left, "after a crash").unwrap();
        dump(&dumps, 3);
        assert!(!left.exists());
    }

    #[test]
    fn there_must_be_room() {
        let dir = tempfile::tempdir().unwrap();
        let dumps = Dumps::new(dir.path(), "vm");
        let kept = [dump(&dumps, 3), dump(&dumps, 3), dump(&dumps, 3)];
        let error = dumps.begin(u64::MAX / 2, 3).unwrap_err();
        assert!(matches!(error, DumpError::Full { .. }), "{error}");
        assert!(!kept[0].exists() && kept[1].exists() && kept[2].exists(), "the oldest went to make room");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(Dumps::new(&file, "vm").begin(0, 1), Err(DumpError::Io { .. })));
    }
}
