//! A volume's write log: committed epochs on their way into its image.
//!
//! ```text
//!   committed ──► append, sync ──► written into the image ──► image flushed ──► log emptied
//!                       │ a crash anywhere from here on          │
//!                       └──────── recover: written again ◄───────┘
//! ```
//!
//! It is there because an epoch's writes do not reach a disk at once: a host that loses its power in the middle has some of
//! them in the image and not others, in whatever order the kernel and the disk chose, with the guest's own flushes between
//! them long forgotten. No file system is made for that. With the log **an image that is opened is the volume as some
//! epoch left it**, and no older than what was said to be durable.
//!
//! # The file
//!
//! Records, one after another, little endian:
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | magic: `9LOG` |
//! | 4..8 | length of the operations, bytes |
//! | 8..16 | generation: random, the same in all records of a file |
//! | 16..24 | number of the epoch, from 1 in each generation |
//! | 24 | 1 in the last record of an epoch, else 0 |
//! | 25..28 | zero |
//! | 28..32 | CRC-32 (IEEE 802.3) of bytes 0..28 and the operations |
//! | 32.. | operations, as in a checkpoint: see [`batch`](crate::batch) |
//!
//! What comes after the last whole epoch was being written when the host failed: nobody was told of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{MemfdFlags, OFlags, memfd_create};

use crate::batch::{Batch, MAX_PIECE, Op};
use crate::error::VolumeError;
use crate::image::Image;
use crate::overlay::Overlay;
use crate::random;

const MAGIC: [u8; 4] = *b"9LOG";
/// So many bytes are written out at a time: a disk that needs longer than a moment for it is a slow one.
pub const STEP: u64 = 8 << 20;
const HEAD: usize = 32;

/// An open write log. Whoever holds the volume's image holds its log, too.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    /// What of it counts, bytes: behind that is what a failed append left.
    length: u64,
    /// Its length may be on the disk otherwise: what was cut off could come back with a loss of power.
    unsure: bool,
    generation: u64,
    /// The next epoch's number.
    next: u64,
    operations: Vec<u8>,
    record: Vec<u8>,
}

impl WriteLog {
    /// Opens the log at `path`, makes an empty one if it is not there.
    ///
    /// # Errors
    /// `File`.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        let failed = |source| VolumeError::File { what: "cannot open the write log", path: path.into(), source };
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        Self::on(options.open(path).map_err(failed)?)
    }

    /// A log that is gone with this process, for an image that is.
    ///
    /// # Errors
    /// `Io`.
    pub fn in_memory() -> Result<Self, VolumeError> {
        let file = memfd_create("log", MemfdFlags::CLOEXEC).map_err(|error| unwritable(error.into()))?;
        Self::on(file.into())
    }

    fn on(file: File) -> Result<Self, VolumeError> {
        let length = file.metadata().map_err(unreadable)?.len();
        // A process that died may have emptied it without making that durable.
        Ok(Self { file, length, unsure: true, generation: 0, next: 1, operations: Vec::new(), record: Vec::new() })
    }

    /// Whether there may be anything in it.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Its size, bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Appends epochs and makes them durable, all of them or none. Calls `progress` whenever the disk has taken another
    /// [`STEP`] of it.
    ///
    /// # Errors
    /// `Io`; the log is as before then, and the same can be tried again.
    pub fn append<'a>(
        &mut self,
        epochs: impl IntoIterator<Item = &'a Batch>,
        progress: &mut dyn FnMut(),
    ) -> Result<(), VolumeError> {
        if self.is_empty() {
            (self.generation, self.next) = (random::number().map_err(unwritable)?, 1);
        }
        let (mut at, mut next, mut synced) = (self.length, self.next, self.length);
        for batch in epochs {
            let mut put = |this: &File, at: u64| {
                if at - synced >= STEP {
                    ninefold_fault::point("log.sync")?;
                    this.sync_data()?;
                    synced = at;
                    progress();
                }
                Ok(at)
            };
            at = self.append_one(batch, next, at, &mut put).map_err(unwritable)?;
            next += 1;
        }
        ninefold_fault::point("log.sync").map_err(unwritable)?;
        self.file.sync_data().map_err(unwritable)?;
        (self.length, self.next, self.unsure) = (at, next, false);
        ninefold_fault::point("log.synced").map_err(unwritable)
    }

    /// Writes the records of one epoch from `at` on, and calls `after` with where each ends; where the last does.
    fn append_one(
        &mut self,
        batch: &Batch,
        number: u64,
        mut at: u64,
        after: &mut dyn FnMut(&File, u64) -> io::Result<u64>,
    ) -> io::Result<u64> {
        let Self { file, generation, operations, record, .. } = self;
        // One piece is kept back: the last one is marked as such.
        record.clear();
        batch.each_piece(operations, |piece| {
            at = put(file, record, false, at).and_then(|at| after(file, at))?;
            begin(record, *generation, number, piece);
            Ok::<_, io::Error>(())
        })?;
        if record.is_empty() {
            begin(record, *generation, number, &[]);
        }
        put(file, record, true, at).and_then(|at| after(file, at))
    }

    /// Makes it empty, durably.
    ///
    /// # Errors
    /// `Io`: it may be empty, but not durably. To be called again then.
    pub fn clear(&mut self) -> Result<(), VolumeError> {
        ninefold_fault::point("log.clear").map_err(unwritable)?;
        self.file.set_len(0).map_err(unwritable)?;
        // At once: what is cut off is no part of it any more, whatever the sync says. What is appended begins a new generation.
        (self.length, self.unsure) = (0, true);
        ninefold_fault::point("log.cut").map_err(unwritable)?;
        self.file.sync_data().map_err(unwritable)?;
        self.unsure = false;
        ninefold_fault::point("log.cleared").map_err(unwritable)
    }

    /// Writes all epochs in the log into the image, makes that durable and empties the log; answers how many they were.
    /// May be repeated. Each byte is written once, with what the last epoch left there: whoever reads the image meanwhile
    /// finds nothing older than he would have before.
    ///
    /// # Errors
    /// `Io`, those of the image. `Damaged` if what was logged is not for this image.
    pub fn recover(&mut self, image: &dyn Image) -> Result<u64, VolumeError> {
        if self.is_empty() {
            // What was cut off must not come back over what is written into the image from now on.
            if self.unsure {
                ninefold_fault::point("log.unsure").map_err(unwritable)?;
                self.file.sync_data().map_err(unwritable)?;
                self.unsure = false;
            }
            return Ok(0);
        }
        let (epochs, overlay) = self.read(image.size())?;
        let all = usize::try_from(image.size()).unwrap_or(usize::MAX);
        for piece in overlay.pieces(0, all) {
            ninefold_fault::point("recover.write").map_err(unwritable)?;
            match piece.data {
                Some(data) => image.write(piece.at as u64, data.as_ref())?,
                None => image.zero(piece.at as u64, piece.length as u64, true)?,
            }
        }
        ninefold_fault::point("recover.flush").map_err(unwritable)?;
        image.flush()?;
        self.clear()?;
        Ok(epochs)
    }

    /// What its whole epochs wrote, the newest on top, and how many they are.
    fn read(&mut self, size: u64) -> Result<(u64, Overlay), VolumeError> {
        let mut overlay = Overlay::default();
        let (mut at, mut epochs, mut epoch) = (0, 0, Vec::new());
        self.file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let mut file = io::BufReader::with_capacity(1 << 20, &self.file);
        let mut generation = None;
        while let Some(record) = Record::read(&mut file, self.length - at).map_err(unreadable)? {
            if record.generation != *generation.get_or_insert(record.generation) || record.number != epochs + 1 {
                break;
            }
            at += (HEAD + record.operations.len()) as u64;
            let batch = Batch::parse(record.operations, size)
                .map_err(|error| VolumeError::Damaged { path: "the write log".into(), report: error.to_string() })?;
            epoch.push(batch);
            if record.last {
                epochs += 1;
                epoch.drain(..).for_each(|batch| batch.ops().iter().for_each(|op| overlay.put(op, epochs)));
            }
        }
        Ok((epochs, overlay))
    }
}

struct Record {
    generation: u64,
    number: u64,
    last: bool,
    operations: Vec<u8>,
}

impl Record {
    /// The next record, `None` if what comes is none. `left`: bytes until the end of the log.
    fn read(file: &mut impl Read, left: u64) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD];
        if left < HEAD as u64 {
            return Ok(None);
        }
        file.read_exact(&mut head)?;
        let four = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
        let length = four(4) as usize;
        let good = head[..4] == MAGIC && length <= MAX_PIECE && head[24] <= 1 && head[25..28] == [0; 3];
        if !good || (left - HEAD as u64) < length as u64 {
            return Ok(None);
        }
        let mut operations = vec![0; length];
        file.read_exact(&mut operations)?;
        let (generation, number, last) = (eight(8), eight(16), head[24] == 1);
        Ok((sum(&head, &operations) == four(28)).then_some(Self { generation, number, last, operations }))
    }
}

/// Begins a record with everything but whether it is its epoch's last.
fn begin(record: &mut Vec<u8>, generation: u64, number: u64, operations: &[u8]) {
    record.clear();
    record.extend_from_slice(&MAGIC);
    record.extend_from_slice(&(operations.len() as u32).to_le_bytes());
    record.extend_from_slice(&generation.to_le_bytes());
    record.extend_from_slice(&number.to_le_bytes());
    record.extend_from_slice(&[0; 8]);
    record.extend_from_slice(operations);
}

/// Writes a record that was begun, if one was; where it ends.
fn put(file: &File, record: &mut [u8], last: bool, at: u64) -> io::Result<u64> {
    let Some((head, operations)) = record.split_at_mut_checked(HEAD) else { return Ok(at) };
    head[24] = last.into();
    let sum = sum(head, operations).to_le_bytes();
    head[28..].copy_from_slice(&sum);
    ninefold_fault::point("log.write")?;
    file.write_all_at(record, at)?;
    Ok(at + record.len() as u64)
}

fn sum(head: &[u8], operations: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..28]);
    crc.update(operations);
    crc.finalize()
}

fn unwritable(source: io::Error) -> VolumeError {
    VolumeError::Io { what: "cannot write the write log", source }
}

fn unreadable(source: io::Error) -> VolumeError {
    VolumeError::Io { what: "cannot read the write log", source }
}

/// For [`Op::apply`] with a fault point before it.
pub(crate) fn apply(op: &Op, image: &dyn Image) -> Result<(), VolumeError> {
    ninefold_fault::point("apply.op").map_err(|source| VolumeError::Io { what: "cannot write the image", source })?;
    op.apply(image)
}
