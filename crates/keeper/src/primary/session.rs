//! A primary's side of one replication session: a thread that sends and one that reads.

pub mod job;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_machine::PAGE_SIZE;
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::difference::bounded;
use ninefold_model::{Epoch, Term};
use ninefold_replica::pacing::MAX_IN_FLIGHT;
use ninefold_replica::stream::record::{MAX_VOLUME_WRITES, MAX_VOLUMES};
use ninefold_replica::stream::{
    self, Heartbeat, Hello, Mode, ModeChooser, PageEncoder, Pass, PassKind, PassWriter, Preamble, Ready, Record,
    RecordReader, Sample, StreamError, write_record,
};
use ninefold_transport::clock::Moment;
use ninefold_transport::{Link, LinkHandle, LinkReader, LinkWriter};
use ninefold_volume::batch::MAX_MEMORY;
use ninefold_volume::budget::{OUTSTANDING, STILL};
use ninefold_volume::checksums::BLOCK;

use self::job::{Answer, Job, QUESTIONS};
use crate::devices::blocks;
use crate::devices::disks::Disks;
use crate::devices::guest_io::{ADDRESSES, AGENT, CONSOLE, HEALTH};
use crate::error::{KeeperError, report};
use crate::msg::Msg;
use crate::primary::capture::{Join, Taken};
use crate::primary::target::{Piece, translate};
use crate::primary::waker::Waker;
use crate::runtime::priority;
use crate::runtime::side_channel::SideChannel;

/// Heartbeats whose time is remembered. An answer to an older one would come too late to say anything.
const BEATS: usize = 64;
/// Jobs that may wait for the sender. What the core has to say to the backup takes the place of one, see [`SideChannel`].
const JOBS: usize = 8;
/// The last two rounds of the initial copy, the checkpoints that may be unacknowledged with a switchover's last, what is told.
const _: () = assert!(JOBS > 2 + MAX_IN_FLIGHT as usize + 1 + 1);
/// The part of the guest's memory for which the sender keeps a copy of what the backup holds, so that only changes
/// need to be sent: at most half, and no more than is written.
const SHADOW_SHARE: u64 = 2;
/// What the first checkpoint brings of what the copy of the volumes has left, bytes. More goes in a round of its own before.
const REST: u64 = 32 << 20;
/// For the operations' heads, of which less is counted than a long one has.
const HEADS: u64 = 8 << 20;
/// A first checkpoint has all that is held and what is left: that is taken, on the wire and when it is parsed.
const _: () = {
    let most = (STILL + OUTSTANDING) as u64 + REST + HEADS;
    assert!(most <= MAX_VOLUME_WRITES && most <= MAX_MEMORY as u64);
};
/// For one write to the connection.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// A session as the core holds it. Dropping it closes the connection; the threads then end by themselves.
pub struct Session {
    pub name: Term,
    pub jobs: SyncSender<Job>,
    pub handle: LinkHandle,
    /// The backup's answers to checksums, for the one who copies the volumes.
    pub comparison: Option<Receiver<Answer>>,
    told: Arc<SideChannel<Orders>>,
    finish: bool,
}

/// What the core has told the sender.
#[derive(Debug, Default)]
struct Orders {
    /// The witness has bound the backup: the newest says all that those before it said.
    bound: Option<Term>,
    last: LastWords,
}

/// What the backup hears when all that was given to the sender before has been sent.
#[derive(Debug, Default)]
struct LastWords {
    relinquish: Option<(Epoch, String)>,
    bye: Option<&'static str>,
}

impl Session {
    /// The witness holds a record of this term that binds the backup: it is told so soon.
    pub fn bound(&self, term: Term) {
        self.told.tell(&self.jobs, |told| told.bound = Some(term));
    }

    /// The backup may take the VM over, which is at `epoch`: it hears it behind all that was given to the sender before.
    pub fn relinquish(&self, epoch: Epoch, reason: String) {
        self.told.tell(&self.jobs, |told| told.last.relinquish = Some((epoch, reason)));
    }

    /// The session ends on purpose: what the backup holds is of no use to the next one. It hears it behind all that was given to
    /// the sender before.
    pub fn bye(&self, reason: &'static str) {
        self.told.tell(&self.jobs, |told| told.last.bye = Some(reason));
    }

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
    pub waker: Waker,
}

/// Opens session `hello.term` over `link`.
///
/// # Errors
/// No thread can be started.
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
    let on_the_way = Arc::new(OnTheWay::default());
    let (answers, comparison) = sync_channel(QUESTIONS);
    let told = Arc::new(SideChannel::default());
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
        on_the_way: Arc::clone(&on_the_way),
        settings,
        beats: 0,
        core: core.clone(),
        told: Arc::clone(&told),
        last: LastWords::default(),
        round: Epoch(0),
    };
    spawn("send", move || {
        let reason = sender.run(&hello, &work).map_or_else(|e| report(&e), |()| "closed".into());
        handle2.shutdown();
        let _ = core2.send(Msg::SessionEnded { session: name, reason });
    })?;
    spawn("acks", move || {
        let reason = read(name, reader, &choice, &on_the_way, &answers, &core)
            .map_or_else(|e| e, |()| "the backup closed the connection".into());
        let _ = core.send(Msg::SessionEnded { session: name, reason });
    })?;
    Ok(Session { name, jobs, handle, comparison: Some(comparison), told, finish: false })
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

/// When what the backup answers was sent.
#[derive(Debug, Default)]
struct OnTheWay(Mutex<Unanswered>);

#[derive(Debug, Default)]
struct Unanswered {
    /// The last byte of each checkpoint. The backup cannot have had it before.
    checkpoints: VecDeque<(Epoch, Moment)>,
    beats: VecDeque<Moment>,
}

impl OnTheWay {
    fn lock(&self) -> MutexGuard<'_, Unanswered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before the last byte of a checkpoint is sent.
    fn ends(&self, epoch: Epoch) {
        let mut all = self.lock();
        // Never more than may be unacknowledged; a backup that acknowledges nothing is left soon.
        if all.checkpoints.len() == JOBS {
            all.checkpoints.pop_front();
        }
        all.checkpoints.push_back((epoch, Moment::now()));
    }

    /// The backup holds all up to `epoch`: when that one was sent.
    fn acknowledged(&self, epoch: Epoch) -> Option<Moment> {
        let mut all = self.lock();
        let mut sent = None;
        while all.checkpoints.front().is_some_and(|(of, _)| *of <= epoch) {
            sent = all.checkpoints.pop_front().map(|(_, sent)| sent);
        }
        sent
    }

    /// The time to put into a heartbeat.
    fn beats(&self) -> Moment {
        let mut all = self.lock();
        if all.beats.len() == BEATS {
            all.beats.pop_front();
        }
        let now = Moment::now();
        all.beats.push_back(now);
        now
    }

    /// The backup names this time as that of the newest heartbeat that it has read: when that was sent, if it was.
    /// None for a time that no heartbeat had.
    fn echoed(&self, time_us: u64) -> Option<Moment> {
        Some(Moment::from_micros(time_us)).filter(|time| self.lock().beats.contains(time))
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
    on_the_way: Arc<OnTheWay>,
    settings: Settings,
    beats: u64,
    core: Sender<Msg>,
    told: Arc<SideChannel<Orders>>,
    last: LastWords,
    /// The newest round of the initial copy.
    round: Epoch,
}

impl SenderThread {
    /// Until the core drops the session's job queue, or an error.
    fn run(mut self, hello: &Hello, work: &Receiver<Job>) -> Result<(), StreamError> {
        use std::io::Write;
        self.out.write_all(&Preamble::OURS.to_bytes()).map_err(StreamError::Io)?;
        self.record(&Record::Hello(Box::new(hello.clone())))?;
        loop {
            let job = match work.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.last_words()?;
                    work.recv_timeout(self.settings.heartbeat)
                }
                Ok(job) => Ok(job),
                Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
            };
            if let Ok(job) = &job {
                self.hear(job)?;
            }
            match job {
                Ok(Job::Round { round, pieces }) => self.copy(round, &pieces)?,
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
                // Heard already.
                Ok(Job::Woken) => {}
                Err(RecvTimeoutError::Timeout) => self.beat()?,
                Err(RecvTimeoutError::Disconnected) => return self.last_words(),
            }
        }
    }

    /// Does what the core has told, but for what is to be said last.
    fn hear(&mut self, before: &Job) -> Result<(), StreamError> {
        let Orders { bound, last } = self.told.hear(before);
        self.last = LastWords {
            relinquish: last.relinquish.or(self.last.relinquish.take()),
            bye: last.bye.or(self.last.bye.take()),
        };
        if let Some(term) = bound {
            self.term = term;
            self.record(&Record::Bound { session: self.name.0, term })?;
        }
        Ok(())
    }

    /// Nothing waits: says what is to be said last.
    fn last_words(&mut self) -> Result<(), StreamError> {
        let LastWords { relinquish, bye } = std::mem::take(&mut self.last);
        if let Some((epoch, reason)) = relinquish {
            self.record(&Record::Relinquish { session: self.name.0, epoch, reason: &reason })?;
        }
        bye.map_or(Ok(()), |reason| self.record(&Record::Bye { reason }))
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
            time_us: self.on_the_way.beats().as_micros(),
        }))
    }

    fn volumes(&mut self, round: Epoch, pieces: &Receiver<(u16, Vec<u8>)>) -> Result<(), StreamError> {
        self.round = round;
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

    fn copy(&mut self, round: Epoch, pieces: &Receiver<Piece>) -> Result<(), StreamError> {
        self.round = round;
        let pass = Pass { session: self.name.0, kind: PassKind::Sync, epoch: round };
        // Whole pages: the copies kept for patches are for pages that are written often.
        self.encoder.set_mode(Mode::Raw);
        let mut pass = PassWriter::begin(&mut self.out, &mut self.scratch, pass, self.term)?;
        while let Ok(piece) = pieces.recv() {
            self.settings.waker.ring();
            translate(&piece.runs, &mut self.runs);
            pass.pages(&mut self.encoder, &self.runs, &piece.bytes)?;
        }
        pass.end()?;
        Ok(())
    }

    /// Sends what is left of the volumes' copy as a round. While memory was copied, the guest may have written any amount.
    fn rest(&mut self, rest: &[Vec<u64>]) -> Result<(), StreamError> {
        self.round = self.round.next();
        let pass = Pass { session: self.name.0, kind: PassKind::Sync, epoch: self.round };
        let mut pass = PassWriter::begin(&mut self.out, &mut self.scratch, pass, self.term)?;
        let disks = Arc::clone(&self.settings.disks);
        for ((volume, disk), blocks) in (0u16..).zip(disks.iter()).zip(rest) {
            let mut offset = 0;
            for some in blocks.chunks(16) {
                self.operations.clear();
                blocks::encode(&disk.served, some, &mut self.operations)
                    .map_err(|e| StreamError::Volume(std::io::Error::other(report(&e))))?;
                offset = pass.volume_writes(volume, offset, &self.operations)?;
            }
        }
        pass.end()?;
        Ok(())
    }

    /// Sends a checkpoint; answers its record with what it took.
    fn checkpoint(&mut self, capture: &Taken, join: Option<&Join>) -> Result<CheckpointRecord, StreamError> {
        // The images are as they were at the checkpoint, but for what comes with it.
        let left = join.map_or(&[][..], |join| &join.rest);
        let apart = left.iter().map(|blocks| blocks.len() as u64 * BLOCK).sum::<u64>() > REST;
        if apart {
            self.rest(left)?;
        }
        let left = if apart { &[][..] } else { left };
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
            let rest = left.get(number).into_iter().flat_map(|all| all.chunks(16));
            for blocks in rest {
                self.operations.clear();
                blocks::encode(&disk.served, blocks, &mut self.operations)
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
        self.on_the_way.ends(capture.epoch);
        pass.end()?;
        self.choice.sent(capture.epoch, begun, Sample::of(self.encoder.mode(), &stats));
        let wire_bytes = stats.bytes_out + capture.devices.len() as u64 + volume_bytes;
        Ok(CheckpointRecord { wire_bytes, ..capture.record })
    }
}

/// Reads the backup's side until it ends.
fn read(
    name: Term,
    reader: LinkReader,
    choice: &Choice,
    on_the_way: &OnTheWay,
    answers: &SyncSender<Answer>,
    core: &Sender<Msg>,
) -> Result<(), String> {
    priority::raise();
    let mut records = RecordReader::new(reader);
    records.preamble().and_then(Preamble::agree).map_err(|e| report(&e))?;
    while let Some(frame) = records.next_record().map_err(|e| report(&e))? {
        let (session, msg) = match frame.record {
            Record::Ready { session, what: Ready::Receive } => (session, Msg::SessionReady { session: name }),
            Record::Ready { session, what: Ready::TakeOver } => (session, Msg::SessionTried { session: name }),
            Record::Ack { pass: Pass { session, kind: PassKind::Checkpoint, epoch } } => {
                choice.acknowledged(epoch);
                let sent = on_the_way.acknowledged(epoch);
                (session, Msg::Acked { session: name, epoch, sent })
            }
            Record::Base { session, epoch, changes } => {
                (session, Msg::Base { session: name, epoch, changes: changes.to_vec() })
            }
            Record::Differences { session, json } => {
                let differences =
                    serde_json::from_slice(json).map_err(|e| format!("what the backup has otherwise: {e}"))?;
                (session, Msg::ConfiguredOtherwise { session: name, differences: bounded(differences) })
            }
            Record::Heartbeat(beat) => {
                let echo = on_the_way.echoed(beat.time_us);
                (beat.session, Msg::PeerBeat { session: name, up: beat.uplink, echo })
            }
            Record::VolumeDiffers { session, volume, first, bits } if session == name.0 => {
                match answers.try_send(Answer { volume, first, bits: bits.to_vec() }) {
                    // A copy that has ended wants no answers.
                    Ok(()) | Err(TrySendError::Disconnected(_)) => continue,
                    Err(TrySendError::Full(_)) => return Err("the backup answers what it was not asked".into()),
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_when_what_it_answers_was_sent() {
        let way = OnTheWay::default();
        let mut sent = Vec::new();
        for epoch in 1..=3 {
            let before = Moment::now();
            way.ends(Epoch(epoch));
            sent.push(before..=Moment::now());
        }
        assert!(sent[1].contains(&way.acknowledged(Epoch(2)).unwrap()), "one acknowledgement may be for several");
        assert_eq!(way.acknowledged(Epoch(2)), None, "it says nothing new");
        assert!(sent[2].contains(&way.acknowledged(Epoch(3)).unwrap()));
        let beat = way.beats();
        assert_eq!(way.echoed(beat.as_micros()), Some(beat));
        assert_eq!(way.echoed(0), None);
        assert_eq!(way.echoed(beat.as_micros() + 1), None, "that is another clock's");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let way = OnTheWay::default();
        for n in 0..1000 {
            way.ends(Epoch(n));
            way.beats();
        }
        let all = way.lock();
        assert_eq!((all.checkpoints.len(), all.beats.len()), (JOBS, BEATS));
    }
}
