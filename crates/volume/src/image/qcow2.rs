//! A qcow2 image, read and written by QEMU's own code.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::json;

use super::daemon::Daemon;
use super::tools::short;
use super::write_out::write_out;
use super::{ADDRESS_SPACE, Image, Lock, Locked, Progress, Tools};
use crate::error::VolumeError;
use crate::nbd::Client;

/// How often, and after which pause, an image is tried that a dying storage daemon has locked.
const DYING_TRIES: u32 = 100;
const DYING_PAUSE: Duration = Duration::from_millis(20);

/// Address space of a check, bytes, at most: enough for a file as long as any is taken, in clusters of 64 KiB.
const MOST_MEMORY: u64 = 4 << 30;
/// What QEMU says of an image that is too large for it.
const OUT_OF_BOUNDS: [&str; 2] = ["Cannot allocate memory", "File too large"];
/// The file is written out in pieces of so many bytes, and in no more than so many.
const PIECE: u64 = 8 << 20;
const MOST_PIECES: u64 = 4096;

/// An open qcow2 image, locked for this process alone: a storage daemon and the connection to it. If the daemon dies,
/// every call fails from then on; open the image again.
#[derive(Debug)]
pub struct Qcow2 {
    // Fields are dropped in this order: the connection says good-bye, the daemon goes, and only then the lock.
    client: Client,
    daemon: Daemon,
    lock: Locked,
}

impl Qcow2 {
    /// Checks the image's structures and opens it.
    ///
    /// # Errors
    /// `File`, `Busy`, `NotAnImage`, `Damaged`, `Tool`, and what an NBD client can say.
    pub fn open(path: &Path, tools: &Tools) -> Result<Qcow2, VolumeError> {
        let lock = lock(path, Lock::Exclusive)?;
        let node = json!({
            "driver": "qcow2", "node-name": "disk", "discard": "unmap",
            "file": { "driver": "file", "filename": utf8(path)?, "discard": "unmap" },
        });
        for _ in 0..DYING_TRIES {
            match check(path, tools).and_then(|()| Self::start(tools, &node.to_string())) {
                // We have our own lock: the daemon that has QEMU's is that of a keeper which has just died, and will
                // have ended in a moment, too.
                Err(VolumeError::Busy { .. }) => std::thread::sleep(DYING_PAUSE),
                Err(VolumeError::Tool { report, .. }) if is_locked(&report) => std::thread::sleep(DYING_PAUSE),
                Err(error) => return Err(error),
                Ok((client, daemon)) => return Ok(Qcow2 { client, daemon, lock }),
            }
        }
        Err(VolumeError::Busy { path: path.into(), holder: None })
    }

    fn start(tools: &Tools, node: &str) -> Result<(Client, Daemon), VolumeError> {
        let (daemon, stream) = Daemon::start(tools, node)?;
        match Client::start(stream, "disk") {
            Ok(client) => Ok((client, daemon)),
            // The daemon's own words say more than that it went away.
            Err(VolumeError::Io { .. }) => Err(daemon.into_error()),
            Err(error) => Err(error),
        }
    }

    /// The storage daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }
}

impl Image for Qcow2 {
    fn size(&self) -> u64 {
        self.client.size()
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        self.client.read(at, into)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        self.client.write(at, bytes)
    }

    fn zero(&self, at: u64, length: u64, unmap: bool) -> Result<(), VolumeError> {
        self.client.zero(at, length, unmap)
    }

    /// Where in the file the volume's bytes are only QEMU knows: so all of the file is written out, piece by piece.
    fn write_out(
        &self,
        pieces: &mut dyn Iterator<Item = Range<u64>>,
        progress: &mut dyn FnMut(),
    ) -> Result<(), VolumeError> {
        if pieces.next().is_none() {
            return Ok(());
        }
        let failed = |source| VolumeError::Io { what: "cannot write out the image", source };
        let length = self.lock.metadata().map_err(failed)?.len();
        let step = (length / MOST_PIECES).max(PIECE);
        let mut at = 0;
        while at < length {
            write_out(&self.lock, &(at..length.min(at + step)))?;
            progress();
            at += step;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        self.client.flush()
    }

    fn has_structures(&self) -> bool {
        true
    }
}

/// Opens the regular file at `path` and locks it.
pub(crate) fn lock(path: &Path, lock: Lock) -> Result<Locked, VolumeError> {
    lock.take(regular(path)?, path)
}

/// Opens the regular file at `path` to read it. What else may have that name, a pipe for one, is not waited for.
pub(crate) fn regular(path: &Path) -> Result<File, VolumeError> {
    let failed = |source| VolumeError::File { what: "cannot open", path: path.into(), source };
    let strange = || VolumeError::NotAnImage { path: path.into(), why: "not a regular file" };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    match File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) if file.metadata().map_err(failed)?.is_file() => Ok(file),
        Ok(_) => Err(strange()),
        // A link; a socket.
        Err(error) if [Errno::LOOP, Errno::NXIO].map(|e| Some(e.raw_os_error())).contains(&error.raw_os_error()) => {
            Err(strange())
        }
        Err(error) => Err(failed(error)),
    }
}

/// The size that the image's header gives, bytes.
/// Source: QEMU docs/interop/qcow2.txt, "Header".
pub(crate) fn virtual_size(file: &File, path: &Path) -> Result<u64, VolumeError> {
    let mut head = [0; 32];
    let whole = file.read_exact_at(&mut head, 0).is_ok();
    if !whole || head[..4] != *b"QFI\xfb" {
        return Err(VolumeError::Damaged { path: path.into(), report: "it has no qcow2 header".into() });
    }
    Ok(head[24..].iter().fold(0, |size, byte| size << 8 | u64::from(*byte)))
}

pub(crate) fn utf8(path: &Path) -> Result<&str, VolumeError> {
    path.to_str().ok_or_else(|| VolumeError::NotAnImage { path: path.into(), why: "its path is not UTF-8" })
}

/// Whether QEMU says that another of its programs has the image open.
fn is_locked(report: &str) -> bool {
    report.contains("Failed to get") && report.contains("lock")
}

#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    corruptions: u64,
    #[serde(default, rename = "check-errors")]
    check_errors: u64,
}

/// Has qemu-img look through the image's structures. Clusters that are merely lost (an unclean end leaves some) are no
/// damage.
pub(crate) fn check(path: &Path, tools: &Tools) -> Result<(), VolumeError> {
    judge(path, tools, &tools.run(check_args(utf8(path)?))?)
}

/// The same for an image of which nothing is known, with as much memory as its size needs.
pub(crate) fn check_strange(path: &Path, tools: &Tools, progress: &mut Progress<'_>) -> Result<(), VolumeError> {
    let file = regular(path)?;
    let failed = |source| VolumeError::File { what: "cannot read", path: path.into(), source };
    let length = file.metadata().map_err(failed)?.len();
    let mut head = [0; HEAD];
    let got = file.read_at(&mut head, 0).map_err(failed)?;
    let memory = memory_of_check(&head[..got], length);
    if memory > MOST_MEMORY {
        let report = format!("a check of it needs {} MiB of memory, {} are given", memory >> 20, MOST_MEMORY >> 20);
        return Err(tools.failed(report.as_bytes()));
    }
    judge(path, tools, &tools.examine(check_args(utf8(path)?), memory, progress)?)
}

/// Bytes of a qcow2 header that say how large the clusters and the entries of the refcount table are.
const HEAD: usize = 100;

/// The address space that a check of a qcow2 file of `length` bytes takes, bytes: the usual, and a counter for each cluster
/// of the file, which QEMU keeps in memory. What the header gets wrong is for QEMU to say.
/// Source: QEMU docs/interop/qcow2.txt, "Header"; block/qcow2-refcount.c, "calculate_refcounts".
fn memory_of_check(head: &[u8], length: u64) -> u64 {
    let field = |at: usize| head.get(at..at + 4).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b));
    // 64 KiB and 16 bits are what images mostly have; an old header does not say the latter.
    let cluster_bits = if (9..=21).contains(&field(20)) { field(20) } else { 16 };
    let order = if field(4) >= 3 { field(96).min(6) } else { 4 };
    let clusters = (length >> cluster_bits) + 1;
    ADDRESS_SPACE + (clusters << order).div_ceil(8)
}

fn check_args(path: &str) -> [&str; 6] {
    ["check", "-f", "qcow2", "--output=json", "--", path]
}

fn judge(path: &Path, tools: &Tools, output: &Output) -> Result<(), VolumeError> {
    let damaged = |report| Err(VolumeError::Damaged { path: path.into(), report });
    match (output.status.code(), serde_json::from_slice::<Report>(&output.stdout)) {
        // qemu-img(1), "check": 0 good, 1 not completed, 2 corrupt, 3 leaks only.
        (Some(0 | 3), _) => Ok(()),
        (_, Ok(report)) if report.corruptions + report.check_errors > 0 => damaged(format!(
            "{} wrong entries and {} that could not be checked",
            report.corruptions, report.check_errors
        )),
        (Some(_), _) if is_locked(&short(&output.stderr)) => Err(VolumeError::Busy { path: path.into(), holder: None }),
        // It could not be looked at to its end: strerror(3) of ENOMEM, and of EFBIG for more clusters than QEMU can count.
        (Some(1), Err(_)) if OUT_OF_BOUNDS.iter().any(|why| short(&output.stderr).contains(why)) => {
            Err(tools.failed(&output.stderr))
        }
        // QEMU's option for the key, which it says it lacks.
        (Some(_), _) if short(&output.stderr).contains("key-secret") => {
            Err(VolumeError::Encrypted { path: path.into() })
        }
        (Some(_), _) => damaged(short(&output.stderr)),
        (None, _) => Err(tools.failed(&output.stderr)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_given_what_the_files_length_needs() {
        let head = |version: u32, cluster_bits: u32, order: u32| {
            let mut head = [0; HEAD];
            head[4..8].copy_from_slice(&version.to_be_bytes());
            head[20..24].copy_from_slice(&cluster_bits.to_be_bytes());
            head[96..].copy_from_slice(&order.to_be_bytes());
            head
        };
        let (tib, mib) = (1u64 << 40, 1u64 << 20);
        let over = |head: &[u8], length| (memory_of_check(head, length) - ADDRESS_SPACE) / mib;
        assert_eq!(over(&head(3, 16, 4), 8 * tib), 256);
        assert_eq!(over(&head(3, 12, 4), 8 * tib), 4096);
        assert_eq!(over(&head(3, 16, 6), 8 * tib), 1024);
        assert_eq!(over(&head(2, 16, 0), 8 * tib), 256, "an old one has 16 bits");
        assert_eq!(over(&[], 8 * tib), 256);
        // What makes no sense costs no more than what does.
        assert_eq!(over(&head(3, 200, 4), 8 * tib), 256);
        assert!(memory_of_check(&head(3, 9, u32::MAX), 68 * tib) > MOST_MEMORY);
        assert!(memory_of_check(&head(3, 16, 4), 68 * tib) <= MOST_MEMORY, "the longest file that is taken");
    }
}
