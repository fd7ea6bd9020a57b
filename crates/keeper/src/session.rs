//! A primary's side of one replication session: a thread that sends and one that reads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_machine::{PAGE_SIZE, PageRun};
use ninefold_model::control::CheckpointRecord;
use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::record::MAX_VOLUMES;
use ninefold_replica::stream::{
    self, Heartbeat, Hello, Mode, ModeChooser, PageEncoder, Pass, PassKind, PassWriter, Preamble, Ready, Record,
    RecordReader, Sample, StreamError, write_record,
};
use ninefold_transport::clock::monotonic_us;
use ninefold_transport::{Link, LinkHandle, LinkReader, LinkWriter};

use crate::bell::Bell;
use crate::capture::{Join, Taken};
use crate::disks::Disks;
use crate::error::{KeeperError, report};
use crate::log::LogJob;
use crate::msg::Msg;
use crate::outlets::{ADDRESSES, AGENT, CONSOLE, HEALTH};
use crate::priority;
use crate::resync::{self, Answer};

/// Checkpoints and control records that may wait for the sender.
const JOBS: usize = 8;
/// The part of the guest's memory for which the sender keeps a copy of what the backup holds, so that only changes
/// need to be sent: at most half, and no more than is written.
const SHADOW_SHARE: u64 = 2;
/// For one write to the connection.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// A piece of a round of the initial copy.
#[derive(Debug)]
pub struct Piece {
    pub runs: Vec<PageRun>,
    pub bytes: Vec<u8>,
}

/// What the sender is given.
#[derive(Debug)]
pub enum Job {
    Round {
        round: Epoch,
        pieces: Receiver<Piece>,
    },
    /// Which of these blocks does the backup have otherwise?
    Sums {
        volume: u16,
        first: u64,
        sums: Vec<u8>,
    },
    /// A round of the volumes' copy: operations on volumes, whole ones.
    Volumes {
        round: Epoch,
        pieces: Receiver<(u16, Vec<u8>)>,
    },
    /// With what is needed beside it when it is the session's first.
    Checkpoint {
        taken: Arc<Taken>,
        join: Option<Box<Join>>,
    },
    Bound {
        term: Term,
    },
    Relinquish {
        epoch: Epoch,
        reason: String,
    },
    /// The session ends on purpose: what the backup holds is of no use to the next one.
    Bye {
        reason: &'static str,
    },
    /// For a log alone.
    Log(LogJob),
}

/// A session as the core holds it. Dropping it closes the connection; the threads then end by themselves.
pub struct Session {
    pub name: Term,
    pub jobs: SyncSender<Job>,
    pub handle: LinkHandle,
    /// The backup's answers to checksums, for the one who copies the volumes.
    pub comparison: Option<Receiver<Answer>>,
    finish: bool,
}

impl Session {
    /// Ends the session once what is queued has been sent.
    pub fn finish(mut self) {
        self.finish = true;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.finish {
            self.handle.shutdown();
        }
    }
}

/// What a session needs of its keeper.
#[derive(Debug, Clone)]
pub struct Settings {
    pub heartbeat: Duration,
    /// Whether the public uplink works here.
    pub uplink: Arc<AtomicBool>,
    pub disks: Arc<Disks>,
    /// Rung when there is room for the next piece of a round.
    pub bell: Bell,
}

/// Opens session `hello.term` over `link`.
pub fn open(link: Link, hello: Hello, settings: Settings, core: Sender<Msg>) -> Result<Session, KeeperError> {
    let (jobs, work) = sync_channel(JOBS);
    let handle = link.handle();
    // A peer that takes nothing for so long is found out by its silence; this ends the thread in any case.
    let _ = handle.set_write_timeout(Some(WRITE_LIMIT));
    let name = hello.term;
    let (reader, writer) = link.split();
    let pages: u64 = (0u16..).map_while(|block| hello.layout.pages(block)).sum();
    let encoder = PageEncoder::new(&hello.layout).with_shadow(pages * PAGE_SIZE / SHADOW_SHARE);
    let choice = Arc::new(Choice::default());
    let (answers, comparison) = channel();
    let (core2, handle2) = (core.clone(), handle.clone());
    let sender = SenderThread {
        name,
        term: name,
        out: writer,
        scratch: Vec::with_capacity(64 << 10),
        runs: Vec::new(),
        operations: Vec::new(),
        encoder,
        choice: Arc::clone(&choice),
        settings,
        beats: 0,
        core: core.clone(),
    };
    spawn("send", move || {
        let reason = sender.run(&hello, &work).map_or_else(|e| report(&e), |()| "closed".into());
        handle2.shutdown();
        let _ = core2.send(Msg::SessionEnded { session: name, reason });
    })?;
    spawn("acks", move || {
        let reason = read(name, reader, &choice, &answers, &core)
            .map_or_else(|e| e, |()| "the backup closed the connection".into());
        let _ = core.send(Msg::SessionEnded { session: name, reason });
    })?;
    Ok(Session { name, jobs, handle, comparison: Some(comparison), finish: false })
}

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<(), KeeperError> {
    thread::Builder::new().name(name.into()).spawn(f).map(drop).map_err(KeeperError::Thread)
}

/// Which encoding is best, found out by both threads: one knows what a checkpoint cost to encode, the other when the
/// backup had it.
#[derive(Debug)]
struct Choice {
    chooser: Mutex<ModeChooser>,
    /// Checkpoints that are on their way: when each was begun, and what is known of it.
    sent: Mutex<VecDeque<(Epoch, Instant, Sample)>>,
}

impl Default for Choice {
    fn default() -> Self {
        let sent = VecDeque::with_capacity(JOBS);
        Self { chooser: Mutex::new(ModeChooser::new(true)), sent: Mutex::new(sent) }
    }
}

impl Choice {
    fn chooser(&self) -> MutexGuard<'_, ModeChooser> {
        self.chooser.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, epoch: Epoch, begun: Instant, sample: Sample) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        // Never more than may be unacknowledged; a backup that acknowledges nothing is left soon.
        if sent.len() < JOBS {
            sent.push_back((epoch, begun, sample));
        }
    }

    /// The backup holds all up to `epoch`.
    fn acknowledged(&self, epoch: Epoch) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(&(of, begun, sample)) = sent.front().filter(|(of, ..)| *of <= epoch) {
            sent.pop_front();
            if of == epoch {
                let send = begun.elapsed().saturating_sub(sample.encode);
                self.chooser().record(&Sample { send, ..sample });
            }
        }
    }
}

struct SenderThread {
    name: Term,
    /// The newest term: the session's, then that of the binding.
    term: Term,
    out: LinkWriter,
    scratch: Vec<u8>,
    /// The runs of the pass at hand, in the stream's terms.
    runs: Vec<stream::PageRun>,
    /// Operations on volumes.
    operations: Vec<u8>,
    encoder: PageEncoder,
    choice: Arc<Choice>,
    settings: Settings,
    beats: u64,
    core: Sender<Msg>,
}

impl SenderThread {
    /// Until the core drops the session's job queue, or an error.
    fn run(mut self, hello: &Hello, work: &Receiver<Job>) -> Result<(), StreamError> {
        use std::io::Write;
        self.out.write_all(&Preamble::OURS.to_bytes()).map_err(StreamError::Io)?;
        self.record(&Record::Hello(Box::new(hello.clone())))?;
        loop {
            match work.recv_timeout(self.settings.heartbeat) {
                Ok(Job::Round { round, pieces }) => self.round(round, &pieces)?,
                Ok(Job::Sums { volume, first, sums }) => {
                    self.record(&Record::VolumeSums { session: self.name.0, volume, first, sums: &sums })?;
                }
                Ok(Job::Volumes { round, pieces }) => self.volumes(round, &pieces)?,
                Ok(Job::Checkpoint { taken, join }) => {
                    // Not before: the initial copy must not take the CPU from the guest.
                    priority::raise();
                    priority::step_aside(&taken.busy);
                    let record = self.checkpoint(&taken, join.as_deref())?;
                    let (session, epoch, resumed) = (self.name, taken.epoch, taken.resumed);
                    let _ = self.core.send(Msg::Sent { session, epoch, resumed, record });
                }
                Ok(Job::Bound { term }) => {
                    self.term = term;
                    self.record(&Record::Bound { session: self.name.0, term })?;
                }
                Ok(Job::Relinquish { epoch, reason }) => {
                    self.record(&Record::Relinquish { session: self.name.0, epoch, reason: &reason })?;
                }
                Ok(Job::Bye { reason }) => self.record(&Record::Bye { reason })?,
                // Not for a backup.
                Ok(Job::Log(_)) => {}
                Err(RecvTimeoutError::Timeout) => self.beat()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn record(&mut self, record: &Record<'_>) -> Result<(), StreamError> {
        use std::io::Write;
        write_record(&mut self.out, &mut self.scratch, record)?;
        self.out.flush().map_err(StreamError::Io)
    }

    fn beat(&mut self) -> Result<(), StreamError> {
        self.beats += 1;
        self.record(&Record::Heartbeat(Heartbeat {
            session: self.name.0,
            seq: self.beats,
            uplink: self.settings.uplink.load(Ordering::Relaxed),
            time_us: monotonic_us(),
        }))
    }

    fn volumes(&mut self, round: Epoch, pieces: &Receiver<(u16, Vec<u8>)>) -> Result<(), StreamError> {
        let pass = Pass { session: self.name.0, kind: PassKind::Sync, epoch: round };
        let mut totals = PassWriter::begin(&mut self.out, &mut self.scratch, pass, self.term)?.pause();
        let mut offsets = [0; MAX_VOLUMES as usize];
        loop {
            match pieces.recv_timeout(self.settings.heartbeat) {
                Ok((volume, bytes)) => {
                    let mut pass = PassWriter::resume(&mut self.out, &mut self.scratch, pass, totals);
                    let offset = &mut offsets[usize::from(volume % MAX_VOLUMES)];
                    *offset = pass.volume_writes(volume, *offset, &bytes)?;
                    totals = pass.pause();
                }
                // The disk is slow, the primary is not dead.
                Err(RecvTimeoutError::Timeout) => self.beat()?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        PassWriter::resume(&mut self.out, &mut self.scratch, pass, totals).end()?;
        Ok(())
    }

    fn round(&mut self, round: Epoch, pieces: &Receiver<Piece>) -> Result<(), StreamError> {
        let pass = Pass { session: self.name.0, kind: PassKind::Sync, epoch: round };
        // Whole pages: the copies kept for patches are for pages that are written often.
        self.encoder.set_mode(Mode::Raw);
        let mut pass = PassWriter::begin(&mut self.out, &mut self.scratch, pass, self.term)?;
        while let Ok(piece) = pieces.recv() {
            self.settings.bell.ring();
            translate(&piece.runs, &mut self.runs);
            pass.pages(&mut self.encoder, &self.runs, &piece.bytes)?;
        }
        pass.end()?;
        Ok(())
    }

    /// Sends a checkpoint; answers its record with what it took.
    fn checkpoint(&mut self, capture: &Taken, join: Option<&Join>) -> Result<CheckpointRecord, StreamError> {
        let pass = Pass { session: self.name.0, kind: PassKind::Checkpoint, epoch: capture.epoch };
        let begun = Instant::now();
        let mut volume_bytes = 0;
        self.encoder.set_mode(self.choice.chooser().mode());
        let mut pass = PassWriter::begin(&mut self.out, &mut self.scratch, pass, self.term)?;
        translate(capture.runs(), &mut self.runs);
        let stats = pass.pages(&mut self.encoder, &self.runs, capture.content())?;
        pass.device_state(&capture.devices)?;
        pass.channel_output(CONSOLE, join.map_or(&capture.console, |j| &j.console))?;
        pass.channel_output(AGENT, &capture.agent)?;
        pass.channel_output(ADDRESSES, capture.addresses.as_bytes())?;
        pass.channel_output(HEALTH, &capture.health)?;
        for (number, disk) in self.settings.disks.iter().enumerate() {
            let volume = number as u16;
            let mut offset = 0;
            // First what the copy left, then what the guest did to the volume and is perhaps not in it yet.
            let rest = join.and_then(|j| j.rest.get(number)).into_iter().flat_map(|all| all.chunks(16));
            for blocks in rest {
                self.operations.clear();
                resync::encode(&disk.served, blocks, &mut self.operations)
                    .map_err(|e| StreamError::Volume(std::io::Error::other(report(&e))))?;
                offset = pass.volume_writes(volume, offset, &self.operations)?;
            }
            let batches = match join {
                Some(join) => join.queued.get(number).map_or(&[][..], Vec::as_slice),
                None => capture.volumes.get(number).map_or(&[][..], std::slice::from_ref),
            };
            for batch in batches {
                batch.each_piece(&mut self.operations, |piece| {
                    offset = pass.volume_writes(volume, offset, piece)?;
                    Ok::<_, StreamError>(())
                })?;
            }
            volume_bytes += offset;
        }
        pass.end()?;
        self.choice.sent(capture.epoch, begun, Sample::of(self.encoder.mode(), &stats));
        let wire_bytes = stats.bytes_out + capture.devices.len() as u64 + volume_bytes;
        Ok(CheckpointRecord { wire_bytes, ..capture.record })
    }
}

/// Runs of pages in the stream's terms.
pub fn translate(from: &[PageRun], to: &mut Vec<stream::PageRun>) {
    to.clear();
    to.extend(from.iter().map(|r| stream::PageRun { block: r.block, first: r.first, count: r.count }));
}

/// Reads the backup's side until it ends.
fn read(
    name: Term,
    reader: LinkReader,
    choice: &Choice,
    answers: &Sender<Answer>,
    core: &Sender<Msg>,
) -> Result<(), String> {
    priority::raise();
    let mut records = RecordReader::new(reader);
    records.preamble().and_then(Preamble::agree).map_err(|e| report(&e))?;
    while let Some(frame) = records.next_record().map_err(|e| report(&e))? {
        let (session, msg) = match frame.record {
            Record::Ready { session, what: Ready::Receive } => (session, Msg::SessionReady { session: name }),
            Record::Ack { pass: Pass { session, kind: PassKind::Checkpoint, epoch } } => {
                choice.acknowledged(epoch);
                (session, Msg::Acked { session: name, epoch })
            }
            Record::Base { session, epoch, changes } => {
                (session, Msg::Base { session: name, epoch, changes: changes.to_vec() })
            }
            Record::Heartbeat(beat) => (beat.session, Msg::PeerUplink { session: name, up: beat.uplink }),
            Record::VolumeDiffers { session, volume, first, bits } if session == name.0 => {
                // A copy that has ended wants no answers.
                let _ = answers.send(Answer { volume, first, bits: bits.to_vec() });
                continue;
            }
            Record::Refuse { reason, .. } => return Err(format!("the backup refuses: {reason}")),
            Record::Bye { reason } => return Err(format!("the backup left: {reason}")),
            _ => continue,
        };
        if session != name.0 {
            return Err(format!("the backup speaks of session {session}, this is {name}"));
        }
        if core.send(msg).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
