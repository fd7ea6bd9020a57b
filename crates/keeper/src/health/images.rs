//! The committed image of a VM on this host, when it is not the one in the configuration: one small file beside that.
//!
//! It is replaced in one step, so that a crash leaves the former or the new one. It remembers what the configuration said
//! when the image was committed: an owner who changes the configuration afterwards means that. And it says whose it is: another VM whose
//! configuration takes the place of this one's has committed nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ninefold_model::VmId;
use ninefold_model::spec::Boot;
use serde::{Deserialize, Serialize};

use crate::durable::small_file;

/// Longest record, bytes: two images with their paths and command lines.
const MAX_RECORD: u64 = 64 << 10;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    vm: VmId,
    /// What the configuration said.
    configured: Boot,
    committed: Boot,
}

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot {what} the record of the committed image {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is no record of a committed image; remove it to boot the image of the configuration")]
    Parse { path: PathBuf, source: serde_json::Error },
}

/// See the [module](self).
#[derive(Debug)]
pub struct Images {
    path: PathBuf,
    vm: VmId,
    configured: Boot,
    /// With a number that goes up with each change.
    committed: Mutex<(u64, Option<Boot>)>,
    /// Held by who replaces the record: a disk may be slow, and who asks does not wait for it.
    writes: Mutex<()>,
    /// The newest turn: who writes in an older one is late.
    turn: AtomicU64,
}

impl Images {
    /// The image of the configuration.
    pub fn configured(&self) -> &Boot {
        &self.configured
    }

    /// Reads the record of `vm`, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn open(path: PathBuf, vm: VmId, configured: Boot) -> Result<Self, ImageError> {
        let text = match small_file::read(&path, MAX_RECORD) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(ImageError::Io { what: "read", path, source }),
        };
        let found: Option<OnDisk> = match text.map(|t| serde_json::from_slice(&t)).transpose() {
            Ok(found) => found,
            Err(source) => return Err(ImageError::Parse { path, source }),
        };
        let committed = found.and_then(|f| {
            let record = path.display();
            if f.vm != vm {
                tracing::warn!(%record, of = %f.vm, "the image in the record was committed for another VM: it does not count");
                return None;
            }
            if f.configured != configured {
                tracing::warn!(%record, "the configuration has been changed since an image was committed: it counts");
                return None;
            }
            Some(f.committed)
        });
        Ok(Self {
            path,
            vm,
            configured,
            committed: Mutex::new((0, committed)),
            writes: Mutex::new(()),
            turn: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Option<Boot>)> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The committed image; None: that of the configuration.
    pub fn committed(&self) -> Option<Boot> {
        self.record().1
    }

    /// The same, with a number that goes up with each change.
    pub fn record(&self) -> (u64, Option<Boot>) {
        self.lock().clone()
    }

    /// The same, unless it is the one of this number: then only that.
    pub fn record_after(&self, number: u64) -> (u64, Option<Boot>) {
        let record = self.lock();
        if record.0 == number { (number, None) } else { record.clone() }
    }

    /// Begins a turn: whoever has begun one before says nothing more of the image, however long his disk has kept him.
    pub fn begin_turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Replaces the record, durably, in a turn of its own. Does nothing when it says so already.
    ///
    /// # Errors
    /// It cannot be written; the former one stays.
    pub fn keep(&self, image: Option<&Boot>) -> Result<(), ImageError> {
        self.keep_in(self.begin_turn(), image)
    }

    /// The same in a turn that was begun before; unless that is over.
    ///
    /// # Errors
    /// As of [`Self::keep`].
    pub fn keep_in(&self, turn: u64, image: Option<&Boot>) -> Result<(), ImageError> {
        let _writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.turn.load(Ordering::SeqCst) != turn || self.committed().as_ref() == image {
            return Ok(());
        }
        let failed = |what| move |source| ImageError::Io { what, path: self.path.clone(), source };
        match image {
            Some(image) => {
                let on_disk = OnDisk { vm: self.vm, configured: self.configured.clone(), committed: image.clone() };
                let text = serde_json::to_vec_pretty(&on_disk).map_err(|e| failed("write")(e.into()))?;
                replace(&self.path, &text).map_err(failed("write"))?;
            }
            None => match fs::remove_file(&self.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(e)),
                _ => sync_directory(&self.path).map_err(failed("remove"))?,
            },
        }
        let mut record = self.lock();
        *record = (record.0 + 1, image.cloned());
        Ok(())
    }
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let mut file = File::create(&staged)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    sync_directory(path)
}

/// Makes what was done to a directory's entries durable.
fn sync_directory(of: &Path) -> io::Result<()> {
    match of.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> Boot {
        Boot::Linux { kernel: name.into(), initrd: None, cmdline: "quiet".into() }
    }

    #[test]
    fn what_is_kept_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.image.json");
        let of = |vm: u128, configured: &str| Images::open(path.clone(), VmId::random(vm), image(configured)).unwrap();
        let open = |configured: &str| of(1, configured);
        let images = open("/a");
        assert_eq!(images.committed(), None);
        images.keep(Some(&image("/b"))).unwrap();
        assert_eq!(open("/a").committed(), Some(image("/b")));
        // A crash in the middle of the next one leaves a staged.
        fs::write(dir.path().join("vm.image.json.new"), "{").unwrap();
        assert_eq!(open("/a").committed(), Some(image("/b")));
        assert_eq!(open("/c").committed(), None, "the owner has decided otherwise since");
        assert_eq!(of(2, "/a").committed(), None, "another VM, which has the first one's name and image");
        images.keep(None).unwrap();
        images.keep(None).unwrap();
        assert_eq!(open("/a").committed(), None);
    }

    #[test]
    fn what_is_no_record_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.image.json");
        for bad in ["", "{}", "[1]", "{\"configured\":1}"] {
            fs::write(&path, bad).unwrap();
            let error = Images::open(path.clone(), VmId::random(1), image("/a")).unwrap_err();
            assert!(error.to_string().contains("remove it"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }

    /// A session waits for a slow disk, and the next one has said more meanwhile; or this host has the VM by then.
    #[test]
    fn who_is_late_says_nothing_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path().join("vm.image.json"), VmId::random(1), image("/a")).unwrap();
        let (former, session) = (images.begin_turn(), images.begin_turn());
        images.keep_in(session, Some(&image("/b"))).unwrap();
        images.keep_in(former, Some(&image("/c"))).unwrap();
        assert_eq!(images.committed(), Some(image("/b")));
        images.keep(Some(&image("/d"))).unwrap();
        images.keep_in(session, None).unwrap();
        assert_eq!(images.committed(), Some(image("/d")));
    }

    #[test]
    fn a_record_that_cannot_be_written_leaves_the_former_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone").join("vm.image.json");
        let images = Images::open(path, VmId::random(1), image("/a")).unwrap();
        assert!(images.keep(Some(&image("/b"))).is_err());
        assert_eq!(images.committed(), None);
    }
}
