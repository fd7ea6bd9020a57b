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
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_model::status::SyncProgress;
use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::PageRun;
use ninefold_replica::target::Target;
use ninefold_volume::ServedVolume;
use ninefold_volume::checksums::{self, BLOCK, set_bits};

use crate::devices::blocks::{checksums, encode};
use crate::devices::disks::Disks;
use crate::error::{KeeperError, report};
use crate::msg::Msg;
use crate::primary::changed_blocks::{Blocks, ChangedBlocks};
use crate::primary::session::job::{Answer, Job, QUESTIONS};

/// Blocks whose checksums are asked about at once: 8 MiB. A backup that computes them must not look dead.
const ASKED: u64 = 128;
/// For one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Blocks in one piece of a round: 1 MiB.
const PIECE: usize = 16;
/// When a round leaves at most this many, the rest goes with the first checkpoint: 16 MiB.
const FEW: u64 = 256;
/// After so many rounds it does in any case.
const MAX_ROUNDS: u32 = 16;

/// How it is found out where the backup's volumes differ.
pub enum Differing {
    /// By comparing all blocks.
    Compared(Receiver<Answer>),
    /// It is known: in these blocks, and in what was written since.
    Known { blocks: Vec<PageRun>, written: ChangedBlocks },
}

/// Starts the copy in a thread of its own. It ends with [`Msg::VolumesSynced`] or [`Msg::SessionEnded`], or silently
/// when the session's sender is gone.
///
/// # Errors
/// No thread can be started.
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
        let rest = ChangedBlocks::written(Arc::clone(&disks));
        let outcome = disks.working().and_then(|()| copy(session, &disks, &rest, &jobs, &differing, &core));
        if let Err(reason) = outcome {
            let _ = core.send(Msg::SessionEnded { session, reason });
        }
    };
    thread::Builder::new().name("resync".into()).spawn(run).map(drop).map_err(KeeperError::Thread)
}

/// Marks the blocks of a volume that the backup has otherwise.
fn compare(
    number: u16,
    served: &ServedVolume,
    differ: &Blocks,
    jobs: &SyncSender<Job>,
    answers: &Receiver<Answer>,
) -> Result<(), String> {
    let all = checksums::blocks(served.size());
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
    rest: &ChangedBlocks,
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
