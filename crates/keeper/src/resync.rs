//! Making a backup's volumes equal to the primary's while the guest runs.
//!
//! First both sides compare checksums of their blocks; only what differs is sent. Nothing has to be remembered for that, so
//! there is nothing that a crash of either side, or of both, could spoil. After a take-over another backup is known to differ in
//! little ([`ninefold_replica::continuation`]): then nothing has to be compared.
//!
//! ```text
//!   blocks that differ ──────► round 1 ──► round 2 ──► … few are left ──► memory is copied ──► first checkpoint
//!            ▲                                                                │                  takes the rest
//!            └───────────────────── what the guest writes meanwhile ◄─────────┘
//! ```
//!
//! From the first checkpoint on the images do not change but by what is committed: so the blocks that are left then are
//! read when the guest already runs again.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_model::status::SyncProgress;
use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::PageRun;
use ninefold_replica::target::Target;
use ninefold_volume::batch::{Batch, Op, put_write, put_zero};
use ninefold_volume::served::Mark;
use ninefold_volume::sums::{self, BLOCK, SUM, set_bits};
use ninefold_volume::{Served, VolumeError};

use crate::disks::Disks;
use crate::error::{KeeperError, report};
use crate::msg::Msg;
use crate::session::Job;

/// Blocks whose checksums are asked about at once: 8 MiB. A backup that computes them must not look dead.
const ASKED: u64 = 128;
/// Questions that may be unanswered.
pub const QUESTIONS: usize = 3;
/// For one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Blocks in one piece of a round: 1 MiB.
const PIECE: usize = 16;
/// When a round leaves at most this many, the rest goes with the first checkpoint: 16 MiB.
const FEW: u64 = 256;
/// After so many rounds it does in any case.
const MAX_ROUNDS: u32 = 16;

/// The blocks of one volume that the backup may have otherwise. A bit for each: 2 MiB for 1 TiB.
#[derive(Debug)]
pub struct Blocks {
    count: u64,
    bits: Mutex<Vec<u8>>,
}

impl Blocks {
    /// None yet, of a volume of so many bytes.
    fn of(size: u64) -> Self {
        let count = sums::blocks(size);
        let bytes = usize::try_from(count.div_ceil(8)).unwrap_or(usize::MAX);
        Self { count, bits: Mutex::new(vec![0; bytes]) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> u64 {
        self.lock().iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// Puts in the blocks from `first` up to the one before `end`. Those that the volume does not have are ignored.
    fn put(&self, first: u64, end: u64) {
        let mut bits = self.lock();
        let end = end.min(self.count);
        let mut at = first;
        while at < end {
            let byte = (at / 8) as usize;
            if at.is_multiple_of(8) && end - at >= 8 {
                let whole = ((end - at) / 8) as usize;
                bits[byte..byte + whole].fill(!0);
                at += whole as u64 * 8;
            } else {
                bits[byte] |= 1 << (at % 8);
                at += 1;
            }
        }
    }

    /// Puts in those of another set of the same volume.
    fn put_all(&self, others: &Blocks) {
        let others = others.lock().clone();
        self.lock().iter_mut().zip(others).for_each(|(ours, theirs)| *ours |= theirs);
    }

    /// Takes all out, in order.
    fn take(&self) -> Vec<u64> {
        let mut bits = self.lock();
        let empty = vec![0; bits.len()];
        let taken = std::mem::replace(&mut *bits, empty);
        drop(bits);
        set_bits(&taken).collect()
    }
}

impl Mark for Blocks {
    fn after(&self, at: u64, length: u64) {
        if length > 0 {
            self.put(at / BLOCK, (at + length).div_ceil(BLOCK));
        }
    }
}

/// Blocks of every volume that are written, or that are still to be sent. Shared; what is written is noted until the last owner
/// has gone.
#[derive(Debug, Clone, Default)]
pub struct Rest(Option<Arc<Marks>>);

#[derive(Debug)]
struct Marks {
    disks: Arc<Disks>,
    blocks: Vec<Arc<Blocks>>,
}

impl Rest {
    /// What is written to the volumes from now on.
    pub fn written(disks: Arc<Disks>) -> Self {
        let blocks: Vec<_> = disks.iter().map(|d| Arc::new(Blocks::of(d.served.size()))).collect();
        for (disk, blocks) in disks.iter().zip(&blocks) {
            disk.served.add_mark(Arc::clone(blocks) as Arc<dyn Mark>);
        }
        Self(Some(Arc::new(Marks { disks, blocks })))
    }

    fn blocks(&self) -> &[Arc<Blocks>] {
        self.0.as_ref().map_or(&[], |marks| &marks.blocks)
    }

    /// What a sink that joins is to get of each volume: blocks that are left, and what the guest did in epochs that may not be
    /// in the image yet, oldest first. To be called while the guest is stopped.
    pub fn join(&self, disks: &Disks) -> (Vec<Vec<u64>>, Vec<Vec<Arc<Batch>>>) {
        // In this order: what reaches the image in between is in both.
        let queued = disks.queued();
        (self.blocks().iter().map(|b| b.take()).collect(), queued)
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        for (disk, blocks) in self.disks.iter().zip(&self.blocks) {
            disk.served.remove_mark(&(Arc::clone(blocks) as Arc<dyn Mark>));
        }
    }
}

/// Appends the content of blocks to `out`, as operations; zeros as such.
pub fn encode(served: &Served, blocks: &[u64], out: &mut Vec<u8>) -> Result<(), VolumeError> {
    let mut buffer = [0; BLOCK as usize];
    for block in blocks {
        let at = block * BLOCK;
        let length = BLOCK.min(served.size() - at);
        let content = &mut buffer[..length as usize];
        served.read_image(at, content)?;
        if content.iter().all(|&b| b == 0) {
            put_zero(out, at, length, true);
        } else {
            put_write(out, at, content);
        }
    }
    Ok(())
}

/// The checksums of `count` blocks from `first` on, as they are in the image now; as many as the volume has.
pub fn checksums(served: &Served, first: u64, count: u64) -> Result<Vec<u8>, VolumeError> {
    let end = first.saturating_add(count).min(sums::blocks(served.size()));
    let mut buffer = vec![0; BLOCK as usize];
    let mut all = Vec::with_capacity((end.saturating_sub(first)) as usize * SUM);
    for block in first..end {
        let at = block * BLOCK;
        let content = &mut buffer[..BLOCK.min(served.size() - at) as usize];
        served.read_image(at, content)?;
        all.extend_from_slice(&sums::sum(content));
    }
    Ok(all)
}

/// A backup's answer to checksums: where its own differ, a bit for each block.
#[derive(Debug)]
pub struct Answer {
    pub volume: u16,
    pub first: u64,
    pub bits: Vec<u8>,
}

/// The blocks that a checkpoint's operations on each volume touch.
pub fn touched(batches: &[Batch]) -> Vec<PageRun> {
    let blocks = |(volume, batch): (u16, &Batch)| {
        let run = move |op: &Op| {
            let (at, end) = op.range();
            let (first, behind) = (at / BLOCK, end.div_ceil(BLOCK));
            // A volume of 256 TiB has fewer.
            PageRun { block: volume, first, count: u32::try_from(behind.saturating_sub(first)).unwrap_or(u32::MAX) }
        };
        batch.ops().iter().map(run).collect::<Vec<_>>()
    };
    (0u16..).zip(batches).flat_map(blocks).collect()
}

/// How it is found out where the backup's volumes differ.
pub enum Differing {
    /// By comparing all blocks.
    Compared(Receiver<Answer>),
    /// It is known: in these blocks, and in what was written since.
    Known { blocks: Vec<PageRun>, written: Rest },
}

/// Starts the copy in a thread of its own. It ends with [`Msg::VolumesSynced`] or [`Msg::CannotReplicate`], or silently
/// when the session's sender is gone.
pub fn start(
    session: Term,
    disks: Arc<Disks>,
    jobs: SyncSender<Job>,
    differing: Differing,
    core: Sender<Msg>,
) -> Result<(), KeeperError> {
    let run = move || {
        // What is written from here on is marked; what was before is in the image when it is compared. What is committed and
        // not in the images yet gets there with its mark, or is sent with the first checkpoint.
        let rest = Rest::written(Arc::clone(&disks));
        let outcome = disks.working().and_then(|()| copy(session, &disks, &rest, &jobs, &differing, &core));
        if let Err(reason) = outcome {
            let _ = core.send(Msg::CannotReplicate { target: Target::Session(session), reason });
        }
    };
    thread::Builder::new().name("resync".into()).spawn(run).map(drop).map_err(KeeperError::Thread)
}

/// Marks the blocks of a volume that the backup has otherwise.
fn compare(
    number: u16,
    served: &Served,
    differ: &Blocks,
    jobs: &SyncSender<Job>,
    answers: &Receiver<Answer>,
) -> Result<(), String> {
    let all = sums::blocks(served.size());
    let (mut next, mut open) = (0, VecDeque::new());
    while next < all || !open.is_empty() {
        if next < all && open.len() < QUESTIONS {
            ninefold_fault::point("resync.ask").map_err(|e| e.to_string())?;
            let sums = checksums(served, next, ASKED).map_err(|e| report(&e))?;
            open.push_back((next, ASKED.min(all - next)));
            jobs.send(Job::Sums { volume: number, first: next, sums })
                .map_err(|_| "the sender has ended".to_owned())?;
            next += ASKED;
            continue;
        }
        let answer = answers.recv_timeout(ANSWER_LIMIT).map_err(|_| "the backup compares no checksums".to_owned())?;
        match open.pop_front() {
            Some((first, count)) if (answer.volume, answer.first) == (number, first) => {
                let differing = set_bits(&answer.bits).filter(|&n| n < count);
                differing.for_each(|n| differ.put(first + n, first + n + 1));
            }
            _ => return Err("the backup answers what it was not asked".into()),
        }
    }
    Ok(())
}

fn copy(
    session: Term,
    disks: &Disks,
    rest: &Rest,
    jobs: &SyncSender<Job>,
    differing: &Differing,
    core: &Sender<Msg>,
) -> Result<(), String> {
    let gone = || "the sender has ended".to_owned();
    for ((number, disk), blocks) in (0u16..).zip(disks.iter()).zip(rest.blocks()) {
        match differing {
            Differing::Compared(answers) => compare(number, &disk.served, blocks, jobs, answers)?,
            Differing::Known { blocks: known, written } => {
                // Both are marked since before: nothing is missed in between.
                written.blocks().get(usize::from(number)).iter().for_each(|since| blocks.put_all(since));
                let known = known.iter().filter(|run| run.block == number);
                known.for_each(|run| blocks.put(run.first, run.first + u64::from(run.count)));
            }
        }
    }
    let (mut round, mut told) = (0, Instant::now());
    let mut progress = SyncProgress { bytes_sent: 0, bytes_total: 0, round: 0 };
    loop {
        round += 1;
        let (pieces, taken) = sync_channel(2);
        jobs.send(Job::Volumes { round: Epoch(round.into()), pieces: taken }).map_err(|_| gone())?;
        for ((number, disk), blocks) in (0u16..).zip(disks.iter()).zip(rest.blocks()) {
            let mut all = blocks.take();
            progress.bytes_total += all.len() as u64 * BLOCK;
            for some in all.chunks_mut(PIECE) {
                ninefold_fault::point("resync.send").map_err(|e| e.to_string())?;
                let mut out = Vec::with_capacity(PIECE * (BLOCK as usize + 32));
                encode(&disk.served, some, &mut out).map_err(|e| report(&e))?;
                pieces.send((number, out)).map_err(|_| gone())?;
                progress.bytes_sent += some.len() as u64 * BLOCK;
                if told.elapsed() > Duration::from_millis(100) {
                    told = Instant::now();
                    let progress = SyncProgress { round, ..progress };
                    let _ = core.send(Msg::SyncProgress { target: Target::Session(session), progress });
                }
            }
        }
        ninefold_fault::point("resync.round").map_err(|e| e.to_string())?;
        drop(pieces);
        let left: u64 = rest.blocks().iter().map(|b| b.len()).sum();
        if left <= FEW || round >= MAX_ROUNDS {
            let rest = rest.clone();
            let _ = core.send(Msg::VolumesSynced { session, rounds: round, bytes: progress.bytes_sent, rest });
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_in_order_and_marked_whole() {
        let blocks = Blocks::of(100 * BLOCK - 1);
        blocks.after(BLOCK - 1, 2);
        blocks.after(10 * BLOCK, BLOCK);
        blocks.after(5, 0);
        blocks.after(99 * BLOCK, 5 * BLOCK);
        assert_eq!((blocks.len(), blocks.take()), (4, vec![0, 1, 10, 99]));
        assert_eq!((blocks.len(), blocks.take()), (0, vec![]));
        let more = Blocks::of(100 * BLOCK);
        more.put(3, 41);
        blocks.put(40, 42);
        blocks.put_all(&more);
        assert_eq!(blocks.take(), (3..42).collect::<Vec<_>>());
        assert_eq!(more.len(), 38);
    }
}
