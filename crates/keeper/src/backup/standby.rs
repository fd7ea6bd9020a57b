//! A backup's side of one session: a thread that receives checkpoints into a standby QEMU.
//!
//! ```text
//!  connection ──► Hello ──► core decides ──► QEMU is launched, waiting ──► Ready ──► passes ──► the stream ends
//!                              │ no: Refuse                                            │            │
//!                                                                     whole: Held, then applied     │
//!                                                       a checkpoint is held: the witness's word is awaited
//!                                                              this host has the VM: its devices are loaded, Loaded
//!                                                              another has it: the standby is parked
//! ```
//!
//! A QEMU that has loaded device state cannot wait for another one: so nothing is loaded before the witness has said that this
//! host has the VM. That costs a take-over a millisecond or two; a standby that is not needed is [parked](crate::backup::parking) for
//! the next session, of the same primary or of the host that took over from it, which then sends only what differs.
//! The witness is asked when the standby is whole: a host whose standby has died must not take the VM from a primary that
//! perhaps lives.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_core::disk_watch::SLOW;
use ninefold_listen::{Acquaintance, Bounds, Place, Register};
use ninefold_machine::{Machine, MachineConfig, Mechanism, Memory, PageRun, Ports, Ram, Tracker};
use ninefold_model::health::Health;
use ninefold_model::spec::{Boot, VmSpec};
use ninefold_model::status::MachineStatus;
use ninefold_model::{Epoch, HostName, Term, Uuid};
use ninefold_replica::continuation::{Base, History};
use ninefold_replica::stream::record::RefuseCode;
use ninefold_replica::stream::{
    BlockInfo, CheckpointAssembler, Fed, Hello, Layout, PAGE_SIZE, PageSink, PassKind, Preamble, Record, RecordReader,
    write_record,
};
use ninefold_transport::{Incoming, Link, LinkHandle, LinkReader, Security};
use ninefold_witness_client::{Timeouts, Witness, WitnessClient};

use crate::backup::acknowledge::Acknowledger;
use crate::backup::custody::{self, Custody, Kept, Note};
use crate::backup::loaded::Loaded;
use crate::backup::offer::{Accepted, Answer, StandbyUse};
use crate::backup::parking::{Built, Parked, Parking, StandbyMachine};
use crate::backup::proof::Proof;
use crate::config::KeeperConfig;
use crate::devices::blocks;
use crate::devices::disks::Disks;
use crate::devices::guest_io::{ADDRESSES, CONSOLE, GuestIo, HEALTH};
use crate::durable::booted;
use crate::durable::generation::Generation;
use crate::durable::log::job::{Job, Left, Opening, Received};
use crate::error::report;
use crate::health::images::Images;
use crate::health::shared;
use crate::msg::Msg;
use crate::primary::capture::micros;
use crate::runtime::priority;

/// For the handshake. A connector gives it up after 1.5 s.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(2);
/// For all that opens a session, so that a silent host is soon rid of.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a standby that waits for the witness's word is looked after.
const LOOK: Duration = Duration::from_millis(20);
/// How long a session waits for its log to say whether it goes on. As long as for any disk that is slow: the primary waits longer.
const LOG_LIMIT: Duration = Duration::from_secs(10);
const NO_ANSWER: &str = "the log's disk does not answer";
/// How often a log's queue that is full is looked at.
const LOOK_AT_LOG: Duration = Duration::from_millis(1);
/// For one small write to the primary.
const WRITE_LIMIT: Duration = Duration::from_millis(100);

/// What the thread needs of its keeper.
#[derive(Clone)]
pub struct Standby {
    pub config: Arc<KeeperConfig>,
    pub guest_io: Arc<GuestIo>,
    pub disks: Arc<Disks>,
    pub images: Arc<Images>,
    pub parking: Arc<Parking>,
    pub security: Security,
    pub core: Sender<Msg>,
}

/// The hosts that are connected.
pub struct Door {
    hosts: Register<HostName, LinkHandle>,
}

impl Door {
    /// Nobody is there.
    pub fn new(bounds: Bounds) -> Self {
        Self { hosts: Register::new(bounds) }
    }
}

impl Standby {
    /// Serves one incoming connection from handshake to end.
    pub fn serve(self, incoming: Incoming, door: &Door) {
        let from = incoming.remote_addr();
        // The journal folds those of a stranger who knocks for ever.
        let refused = |peer: String, reason| drop(self.core.send(Msg::RefusedPeer { peer, reason }));
        let link = match incoming.handshake(HANDSHAKE_LIMIT) {
            Ok(link) => link,
            Err(error) => return refused(from.to_string(), report(&error)),
        };
        let peer = link.peer().clone();
        let ours = self.config.vm.policy.peers.iter().any(|p| p.host == peer);
        let standing = if ours { Acquaintance::Known } else { Acquaintance::Stranger };
        let Some(place) = door.hosts.enter(peer.clone(), standing, link.handle()) else {
            return refused(peer.to_string(), "it has too many connections".into());
        };
        if let Err(reason) = self.session(link, &place) {
            refused(peer.to_string(), reason);
        }
    }

    fn session(&self, link: Link, place: &Place<HostName, LinkHandle>) -> Result<(), String> {
        let peer = link.peer().clone();
        let handle = link.handle();
        let _ = handle.set_read_deadline(Some(PATIENCE));
        // Heartbeats and acknowledgements come late behind one that takes so long: a primary that takes nothing is of no use.
        let _ = handle.set_write_timeout(Some(WRITE_LIMIT));
        let (reader, mut writer) = link.split();
        let mut records = RecordReader::new(reader);
        records.preamble().and_then(Preamble::agree).map_err(|e| report(&e))?;
        let mut scratch = Vec::new();
        io::Write::write_all(&mut writer, &Preamble::OURS.to_bytes()).map_err(|e| e.to_string())?;
        let hello = match records.next_record().map_err(|e| report(&e))? {
            Some(frame) => match frame.record {
                Record::Hello(hello) => hello,
                other => return Err(format!("a session begins with Hello, not {}", other.kind().name())),
            },
            // A connection that only looked whether somebody is here.
            None => return Ok(()),
        };
        let (ours, theirs) = (&self.config.vm, &hello.spec);
        let objection = if theirs.id != ours.id {
            Some((RefuseCode::WrongVm, format!("this keeper keeps {}, not {}", ours.label(), theirs.label())))
        } else if hello.from != peer || !self.config.vm.policy.peers.iter().any(|p| p.host == peer) {
            Some((RefuseCode::Protocol, format!("{peer} is not a host of {}", ours.label())))
        } else if hello.session != hello.term.0 || hello.lanes != 1 {
            Some((RefuseCode::Protocol, "a session is named by its term and has one connection".into()))
        } else if let Err(reason) = booted::can_hold(&hello.spec, &hello.from, &self.config) {
            // A QEMU of that size would be built before the two are compared.
            Some((RefuseCode::CannotBuild, reason))
        } else {
            self.confirmed(&hello).err().map(|reason| (RefuseCode::Protocol, reason))
        };
        if let Some((code, reason)) = objection {
            let _ = write_record(&mut writer, &mut scratch, &Record::Refuse { code, reason: &reason });
            let _ = io::Write::flush(&mut writer);
            return Err(reason);
        }
        let _ = handle.set_read_deadline(None);
        let session = hello.term;
        let (go, answer) = sync_channel(1);
        // It is genuine, and from here on the core watches over it.
        place.busy();
        let _ = self.core.send(Msg::Offer { hello: hello.clone(), writer, handle: handle.clone(), go });
        let accepted = match answer.recv() {
            Ok(Answer::Accepted(accepted)) => accepted,
            Ok(Answer::Refused { mut writer, reason }) => {
                let _ = write_record(
                    &mut writer,
                    &mut scratch,
                    &Record::Refuse { code: RefuseCode::Busy, reason: &reason },
                );
                let _ = io::Write::flush(&mut writer);
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        // The core closes the connection: when the primary has relinquished, not before the witness has answered.
        if let Err(reason) = self.receive(&hello, records, accepted) {
            let _ = self.core.send(Msg::LoadFailed { session, reason });
        }
        Ok(())
    }

    /// Whether the witness names the host that opens this session as primary, in the session's term or a later one: the
    /// record may have changed meanwhile because another backup came or went. Otherwise a host that is mistaken about its
    /// role, or lies, could take the place of the running session, and with a term from the far future that of all to come.
    fn confirmed(&self, hello: &Hello) -> Result<(), String> {
        let (witness, addr) = self.config.witness()?;
        let (host, security) = (witness.clone(), self.security.clone());
        let mut client = WitnessClient::new(addr, host, security, Timeouts::default());
        match client.read(hello.spec.id).map_err(|e| report(&e))? {
            Some(r) if r.primary == hello.from && r.term >= hello.term => Ok(()),
            Some(r) => Err(format!(
                "the witness knows of no session {} of {}: {} has the VM in term {}",
                hello.term, hello.from, r.primary, r.term
            )),
            None => Err(format!("the witness does not know {}", hello.spec.label())),
        }
    }

    /// Takes over what the primary knows of its console, its network and the guest's health.
    fn learn(&self, assembler: &CheckpointAssembler, health: &mut Health, acknowledger: &Acknowledger) {
        if let Some(checkpoint) = assembler.checkpoint() {
            self.guest_io.heard(checkpoint.output(CONSOLE));
            self.guest_io.learn(checkpoint.output(ADDRESSES));
            if let Some(heard) = shared::heard(checkpoint.output(HEALTH)) {
                *health = heard;
                acknowledger.keep(health.clone());
            }
        }
    }

    fn receive(
        &self,
        hello: &Hello,
        mut records: RecordReader<LinkReader>,
        Accepted { log, verdict, echo }: Accepted,
    ) -> Result<(), String> {
        let session = hello.term;
        let Some((place, parked)) = self.parking.enter(session) else { return Ok(()) };
        if let Err(reason) = self.disks.enter(session) {
            // A disk that is slow today may be in time for the next session.
            if let Some(parked) = parked {
                place.park(*parked);
            }
            return Err(reason);
        }
        let mut health = hello.health.clone();
        let (images, turn) = (Arc::clone(&self.images), self.images.begin_turn());
        let keep = Box::new(move |health: &Health| keep(&images, turn, health));
        let acknowledger = Acknowledger::start(session, Arc::clone(&self.disks), keep, self.core.clone())?;
        acknowledger.keep(health.clone());
        if let Err(error) = Generation::of(&self.config).follow(generation(hello)) {
            tracing::warn!(%error, "a later boot on this host may show the guest an earlier generation id");
        }
        let left = match self.left(hello, parked, log.as_ref(), &acknowledger) {
            Ok(left) => left,
            Err((reason, parked)) => {
                // As it is: the log may answer in time for the next session.
                if let Some(parked) = parked {
                    place.park(*parked);
                }
                return Err(reason);
            }
        };
        let (mut standby, mut base, former) = match left {
            Some((standby, base, former)) => (standby, Some(base), former),
            None => {
                opens(log.as_ref(), hello, None, &acknowledger, Instant::now() + LOG_LIMIT)?;
                (build(&self.config, hello, self.disks.sockets(), None)?, None, None)
            }
        };
        if let Some(base) = &mut base {
            // What a failed flush has lost nobody knows but the images: they are compared.
            base.volumes_in_doubt |= self.disks.is_lost();
        }
        if matches!(standby.proof, Proof::Given { .. }) && !standby.proof.is_given(&hello.qemu) {
            // The standby of a former session, whose primary had another QEMU.
            let ram = Arc::clone(standby.machine.memory().ram());
            standby.proof = Proof::begin(machine_config(&self.config, hello, self.disks.sockets())?, ram);
        }
        standby.proof.ready()?;
        let machine = &mut standby.machine;
        let status = status(machine, "as the primary's", "inmigrate");
        let _ = self.core.send(Msg::StandbyReady { session, status, base });
        let memory = Arc::clone(machine.memory());
        let mut sink = Sink { memory, disks: Arc::clone(&self.disks), session, log: log.clone(), touched: false };
        let mut history = None;
        let mut assembler = CheckpointAssembler::new(session.0, session, standby.layout.clone(), 1).from_a_peer();
        let (mut relinquished, mut parted, mut first) = (false, false, true);
        // When the checkpoint that is coming, and the last whole one, began to come: their guest stood still before that.
        let (mut coming, mut stopped) = (None, None);
        let gone = loop {
            // A host that cannot run the VM must not count as its backup. The primary's heartbeats bring us here often.
            alive(machine)?;
            let frame = match records.next_record() {
                Ok(Some(frame)) => frame,
                Ok(None) => break "the primary closed the connection".to_owned(),
                Err(error) => break report(&error),
            };
            match frame.record {
                Record::Bound { term, .. } => {
                    let _ = self.core.send(Msg::BoundTo { session, term });
                }
                Record::Relinquish { session: s, reason, .. } if s == session.0 => {
                    // The connection stays open until this host has the VM or knows that it will not.
                    relinquished = true;
                    let _ = self.core.send(Msg::Relinquished { session, reason: reason.into() });
                    break format!("the primary stopped: {reason}");
                }
                Record::VolumeSums { session: s, volume, first, sums } if s == session.0 => {
                    let bits = self.disks.compare(volume, first, sums)?;
                    let _ = self.core.send(Msg::Differs { session, volume, first, bits });
                }
                Record::Bye { reason } => {
                    parted = true;
                    break format!("the primary left: {reason}");
                }
                Record::Begin { pass, .. } if pass.kind == PassKind::Checkpoint => coming = Some(Instant::now()),
                Record::Heartbeat(beat) if beat.session == session.0 => echo.store(beat.time_us, Ordering::Release),
                _ => {}
            }
            match assembler.feed(&frame, &mut sink) {
                Ok(Fed::Whole(pass)) => {
                    priority::raise();
                    stopped = coming.take();
                    sink.log = None;
                    let first = std::mem::take(&mut first);
                    let touched = |batches: &[_]| if history.is_some() { blocks::touched(batches) } else { Vec::new() };
                    // The disk is waited for elsewhere: who waits here does not notice that the primary is gone.
                    acknowledger.comes()?;
                    let (blocks, mut held) = if log.is_some() {
                        // Acknowledged, and on its way to the volumes, when it is durable.
                        let received = Received::of(session, &mut assembler, &self.disks)?;
                        let blocks = received.as_ref().map(|r| touched(r.volumes())).unwrap_or_default();
                        (blocks, received.map(Box::new).map(Whole::Logged))
                    } else {
                        let batches = self.disks.parse(|v| assembler.take_volume_writes(v))?;
                        let blocks = touched(&batches);
                        self.disks.receive(session, pass.epoch, batches)?;
                        (blocks, Some(Whole::Held))
                    };
                    let tell = |whole| match (whole, &log) {
                        (Some(Whole::Logged(received)), Some(log)) => {
                            let job = Job::Received(received);
                            // There is room, but while the log is still copied to.
                            give(log, job, Some(Instant::now() + LOG_LIMIT))
                        }
                        (Some(Whole::Held), _) => {
                            acknowledger.holds(pass.epoch, first);
                            Ok(())
                        }
                        _ => Ok(()),
                    };
                    if !first {
                        // Before it is applied: from here on it is whole, whatever becomes of the primary.
                        tell(held.take())?;
                    }
                    history = if first { begin(hello, pass.epoch) } else { history };
                    if let (false, Some(history), Some(pending)) = (first, &mut history, assembler.pending()) {
                        history.record(pass.epoch, pending.pages().chain(pending.zeros()), blocks.into_iter());
                    }
                    if let Err(error) = assembler.commit(&mut sink) {
                        break report(&error);
                    }
                    if let (true, Some(checkpoint)) = (first, assembler.checkpoint()) {
                        // Nobody is told that this host could go on with the VM before it is known.
                        standby.proof.give(&hello.qemu, machine.memory(), checkpoint.device_state)?;
                        let _ = self.core.send(Msg::Tried { session });
                        tell(held)?;
                    }
                    note(&mut standby.custody, hello, pass.epoch);
                    self.learn(&assembler, &mut health, &acknowledger);
                }
                Ok(Fed::Synced(pass)) => {
                    // So that little of it is left for the first checkpoint.
                    self.disks.settle_resync()?;
                    debug_assert_eq!(pass.kind, PassKind::Sync);
                    if let Some(log) = &log {
                        let _ = log.send(Job::Settle(session));
                    }
                }
                Ok(Fed::More | Fed::Other) => {}
                Err(error) => break report(&error),
            }
        };
        alive(machine)?;
        if !relinquished {
            let _ = self.core.send(Msg::PrimaryGone { session, reason: gone });
        }
        let begun = Instant::now();
        assembler.abandon();
        assembler.commit(&mut sink).map_err(|e| report(&e))?;
        let several = hello.spec.policy.backups > 1;
        let Some(checkpoint) = assembler.checkpoint() else {
            // Memory and volumes are as the former session left them, unless something was copied to them.
            if let Some((history, logged)) = former.filter(|_| !sink.touched && !parted)
                && sentence(&verdict, machine)? == Some(StandbyUse::Park)
            {
                place.park(Parked { history, logged, standby });
            }
            return Ok(());
        };
        // One that does not answer could not load either, and then its host does not ask for the VM: others may hold it, too.
        machine.query_status().map_err(|e| format!("the standby does not answer: {}", report(&e)))?;
        let _ = self.core.send(Msg::StandbyWaits { session });
        // Before the devices are loaded: what they write to memory then is in no checkpoint yet.
        let here = (session, checkpoint.epoch);
        let mut logged = log.as_ref().is_some_and(|log| drained(log, Some(SLOW)) == Some(here));
        let followed = logged || (several && history.is_some());
        if followed && standby.tracker.is_none() {
            standby.tracker = track(machine);
        }
        let mut load_us = micros(begun.elapsed());
        match sentence(&verdict, machine)? {
            Some(StandbyUse::Load { others }) => {
                // What a log has not taken is not in the volumes either: the guest cannot go on without that. Others need not wait
                // for this host's disk.
                if let Some(log) = log.as_ref().filter(|_| !logged && !hello.spec.hardware.volumes.is_empty()) {
                    logged = !others && drained(log, None) == Some(here);
                    if !logged {
                        return Err("the log did not take the last checkpoint, which the volumes lack therefore".into());
                    }
                    if standby.tracker.is_none() {
                        standby.tracker = track(machine);
                    }
                }
            }
            Some(StandbyUse::Park) => {
                if let Some(history) = history.filter(|_| !parted && (logged || log.is_none())) {
                    place.park(Parked { history, logged: logged.then_some(here), standby });
                }
                return Ok(());
            }
            None => return Ok(()),
        }
        let history = history.filter(|_| several && standby.tracker.is_some());
        let logged = logged && standby.tracker.is_some();
        let begun = Instant::now();
        machine.load(checkpoint.device_state).map_err(|e| report(&e))?;
        load_us += micros(begun.elapsed());
        let StandbyMachine { machine, ports, tracker, .. } = standby;
        let stopped = stopped.map(|stopped| (stopped, self.config.vm.policy.clock_gap));
        let epoch = checkpoint.epoch;
        let spec = hello.spec.as_booted(&self.config.vm);
        let loaded = Loaded { machine, ports, spec, epoch, health, load_us, tracker, history, logged, stopped };
        let _ = self.core.send(Msg::Loaded { session, loaded: Box::new(loaded) });
        Ok(())
    }

    /// What is left here of a former session, if this one's primary can go on from that: the standby, and the log of a
    /// non-volatile VM with it.
    ///
    /// # Errors
    /// The log does not say in time whether it goes on: its disk hangs, or it has ended. With the standby, which the next session may go on
    /// with.
    fn left(
        &self,
        hello: &Hello,
        parked: Option<Box<Parked>>,
        log: Option<&SyncSender<Job>>,
        acknowledger: &Acknowledger,
    ) -> Result<Option<Continued>, (String, Option<Box<Parked>>)> {
        let deadline = Instant::now() + LOG_LIMIT;
        if let Some((parked, base)) = parked.and_then(|p| self.goes_on(hello, *p)) {
            let left = parked.logged.map(|(session, epoch)| Left::Here { session, epoch });
            let goes_on = opens(log, hello, left, acknowledger, deadline)
                .and_then(|answer| answered(&answer, log.is_some(), deadline));
            return match goes_on {
                Ok(true) => Ok(Some((parked.standby, base, Some((parked.history, parked.logged))))),
                Ok(false) => Ok(None),
                Err(reason) => Err((reason, Some(Box::new(parked)))),
            };
        }
        // Memory and log need not be of the same checkpoint: of both it is known what was written since.
        let (Some(kept), Some(origin)) = (self.parking.take_kept(), hello.origin.as_ref()) else { return Ok(None) };
        let left = Left::OnDisk { reign: kept.note.reign, epochs: origin.since..=origin.epoch };
        let answer = opens(log, hello, Some(left), acknowledger, deadline).map_err(|reason| (reason, None))?;
        // Its QEMU has nothing of its own yet: nothing to go back to.
        let Some((standby, base)) = self.goes_on_with_memory(hello, kept) else { return Ok(None) };
        let goes_on = answered(&answer, log.is_some(), deadline).map_err(|reason| (reason, None))?;
        Ok(goes_on.then_some((standby, base, None)))
    }

    /// The standby that is left from the former session, if this one's primary has gone on from what it holds. One that
    /// does not suit is ended here: the next needs its memory and its interfaces.
    fn goes_on(&self, hello: &Hello, parked: Parked) -> Option<(Parked, Base)> {
        let base = parked.history.base(hello.origin.as_ref()?)?;
        let standby = &parked.standby;
        let same = |(spec, boot): (VmSpec, Boot)| standby.built == Built { hardware: spec.hardware, boot };
        let suits = built(&self.config, hello).is_ok_and(same)
            && standby.machine.accel() == hello.accel
            && standby.machine.generation() == generation(hello)
            && hello.layout.same_as(&standby.layout).is_ok()
            && booted::suits(hello, &standby.machine).is_ok()
            && alive(&standby.machine).is_ok();
        suits.then_some((parked, base))
    }

    /// A standby on memory that an earlier keeper has left, if this session's primary knows what has changed since. The other
    /// blocks are QEMU's own, and have gone with it; what that keeper held of the volumes has gone, too.
    fn goes_on_with_memory(&self, hello: &Hello, kept: Kept) -> Option<(StandbyMachine, Base)> {
        let Note { reign, epoch } = kept.note;
        // Memory may have some pages of the checkpoint after that, and only the primary that took it sends those again. To a host
        // that has taken over from an earlier one that checkpoint never was.
        if hello.reign != Some(reign) {
            return None;
        }
        let mut base = History::begin(reign, epoch).base(hello.origin.as_ref()?)?;
        let bytes = hello.spec.hardware.memory_mib.checked_mul(1 << 20)?;
        let built = kept.memory(bytes).map_err(|e| report(&e)).and_then(|ram| {
            let standby = build(&self.config, hello, self.disks.sockets(), Some(ram))?;
            // As yet: until the next one is whole.
            standby.custody.as_ref().map_or(Ok(()), |c| c.holds(Note { reign, epoch })).map_err(|e| e.to_string())?;
            Ok(standby)
        });
        match built {
            Ok(standby) => {
                base.changes.pages.extend(others(&standby.layout));
                base.volumes_in_doubt = true;
                Some((standby, base))
            }
            Err(reason) => {
                tracing::warn!(%reason, "the memory of this host's former standby cannot be used");
                None
            }
        }
    }
}

/// Writes down which image is committed. A host that cannot is a backup all the same: taking over needs no record.
fn keep(images: &Images, turn: u64, health: &Health) {
    if let Err(error) = images.keep_in(turn, health.committed.as_ref()) {
        tracing::error!(error = %report(&error), "this host would boot another image than the committed one");
    }
}

/// A checkpoint that has come whole, and who is to hear of it.
enum Whole {
    /// The volumes have it: it is acknowledged as soon as that may be.
    Held,
    /// The log, which has it acknowledged.
    Logged(Box<Received>),
}

/// What a standby held before this session, and the log with it: see [`Parked`].
type Former = (History, Option<(Term, Epoch)>);

/// What a session goes on with.
type Continued = (StandbyMachine, Base, Option<Former>);

/// A session begins for the log, if there is one, with what is left. The answer says whether it goes on with that.
///
/// # Errors
/// The log's thread has ended, or its queue stays full: its disk hangs.
fn opens(
    log: Option<&SyncSender<Job>>,
    hello: &Hello,
    left: Option<Left>,
    acknowledger: &Acknowledger,
    deadline: Instant,
) -> Result<Receiver<bool>, String> {
    let (reply, answer) = sync_channel(1);
    if let Some(log) = log {
        let opening = Opening { hello: hello.clone(), left, reply, acknowledger: acknowledger.clone() };
        give(log, Job::Session(Box::new(opening)), Some(deadline))?;
    }
    Ok(answer)
}

/// Whether the log goes on with what is left. Where there is none nothing stands against it.
///
/// # Errors
/// It does not say so in time. No session goes on then: a standby that is whole beside a log that is not would be one that cannot
/// acknowledge, and could not say what its log holds.
fn answered(answer: &Receiver<bool>, logs: bool, deadline: Instant) -> Result<bool, String> {
    match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(goes_on) => Ok(goes_on),
        Err(RecvTimeoutError::Disconnected) => Ok(!logs),
        Err(RecvTimeoutError::Timeout) => Err(NO_ANSWER.into()),
    }
}

/// Puts a job into the log's queue. One that is full is one of a disk that is slow, too.
///
/// # Errors
/// The log's thread has ended, or there is no room before the deadline.
fn give(log: &SyncSender<Job>, mut job: Job, deadline: Option<Instant>) -> Result<(), String> {
    while let Err(refused) = log.try_send(job) {
        match refused {
            TrySendError::Disconnected(_) => return Err("the log has ended".into()),
            TrySendError::Full(_) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Err(NO_ANSWER.into());
            }
            TrySendError::Full(again) => job = again,
        }
        thread::sleep(LOOK_AT_LOG);
    }
    Ok(())
}

/// The history of a session's checkpoints.
fn begin(hello: &Hello, first: Epoch) -> Option<History> {
    hello.reign.map(|reign| History::begin(reign, first))
}

/// The VM that is built for `hello` here, the machine as it was booted, and what that boots from: files are where they are on this host.
fn built(config: &KeeperConfig, hello: &Hello) -> Result<(VmSpec, Boot), String> {
    let spec = hello.spec.as_booted(&config.vm);
    let boot = hello.health.image().map_or_else(|| config.host.boot(&spec.hardware.boot), |image| Ok(image.clone()))?;
    Ok((spec, boot))
}

/// All of the blocks but the first, the guest's memory.
fn others(layout: &Layout) -> impl Iterator<Item = ninefold_replica::stream::PageRun> + use<'_> {
    let whole = |block| Some((block, layout.pages(block)?));
    (1u16..).map_while(whole).filter(|(_, pages)| *pages > 0).map(|(block, pages)| {
        // A block of 16 TiB has fewer.
        let count = u32::try_from(pages).unwrap_or(u32::MAX);
        ninefold_replica::stream::PageRun { block, first: 0, count }
    })
}

/// A checkpoint is in memory. One of which nothing can be noted is not kept for the next keeper.
fn note(custody: &mut Option<Custody>, hello: &Hello, epoch: Epoch) {
    if let (Some(kept), Some(reign)) = (&custody, hello.reign)
        && let Err(error) = kept.holds(Note { reign, epoch })
    {
        tracing::warn!(%error, "what memory holds cannot be noted");
        *custody = None;
    }
}

/// A QEMU that waits for a session's checkpoints: on fresh memory, or on what is left of a former one.
fn build(
    config: &KeeperConfig,
    hello: &Hello,
    volumes: Vec<std::path::PathBuf>,
    left: Option<Ram>,
) -> Result<StandbyMachine, String> {
    let ram = left.map_or_else(|| memory(hello), Ok)?;
    let custody = custody::program()
        .and_then(|program| Custody::begin(&program, &ram, &config.vm_dir()))
        .inspect_err(|error| tracing::warn!(%error, "this standby's memory ends with its keeper"))
        .ok();
    let (ram, config) = (Arc::new(ram), machine_config(config, hello, volumes)?);
    let built = Built { hardware: config.spec.hardware.clone(), boot: config.boot.clone() };
    let proof = Proof::begin(config.clone(), Arc::clone(&ram));
    let (mut machine, ports, layout) = launch_on(ram, &config, hello)?;
    // Soft-dirty bits would lock all of the memory.
    let early = (hello.spec.policy.backups > 1 || hello.spec.policy.non_volatile.is_some())
        && machine.mechanism() == Some(Mechanism::PagemapScan);
    let tracker = early.then(|| track(&mut machine)).flatten();
    Ok(StandbyMachine { machine, ports, layout, built, proof, custody, tracker })
}

/// Follows what QEMU writes from now on. Without that the VM can be taken over all the same, but others, and a log, will have to be
/// copied to.
fn track(machine: &mut Machine) -> Option<Tracker> {
    machine
        .track_with(priority::raise)
        .inspect_err(|error| tracing::warn!(error = %report(error), "what the guest writes cannot be followed"))
        .ok()
}

fn memory(hello: &Hello) -> Result<Ram, String> {
    let bytes = hello.spec.hardware.memory_mib.checked_mul(1 << 20).ok_or("the VM's memory has an absurd size")?;
    Ram::create(bytes).map_err(|e| report(&e))
}

/// Starts a QEMU that waits for the state of the VM that `hello` describes, with the files and devices of this host.
///
/// # Errors
/// The VM's memory cannot be made, QEMU does not start, or what runs here cannot load that VM's state: versions, accelerators, or
/// the layouts of memory differ.
pub fn launch(
    config: &KeeperConfig,
    hello: &Hello,
    volumes: Vec<std::path::PathBuf>,
) -> Result<(Machine, Ports, Layout), String> {
    launch_on(Arc::new(memory(hello)?), &machine_config(config, hello, volumes)?, hello)
}

/// What is built for `hello` on this host.
fn machine_config(
    config: &KeeperConfig,
    hello: &Hello,
    volumes: Vec<std::path::PathBuf>,
) -> Result<MachineConfig, String> {
    let (spec, boot) = built(config, hello)?;
    Ok(MachineConfig {
        qemu: config.host.qemu.clone(),
        spec,
        boot,
        accel: hello.accel,
        incoming: true,
        generation: generation(hello),
        volumes,
        extra_args: Vec::new(),
    })
}

fn launch_on(ram: Arc<Ram>, config: &MachineConfig, hello: &Hello) -> Result<(Machine, Ports, Layout), String> {
    let (machine, ports) = Machine::launch(config, ram).map_err(|e| report(&e))?;
    booted::suits(hello, &machine)?;
    let layout = layout(&machine)?;
    hello.layout.same_as(&layout).map_err(|e| report(&e))?;
    Ok((machine, ports, layout))
}

/// The generation id of the VM that `hello` describes.
fn generation(hello: &Hello) -> Uuid {
    hello.generation.unwrap_or_else(|| hello.spec.first_generation())
}

/// With which checkpoint a log ends, once it has all that it was given. None if it has failed, or its disk has not taken that within
/// `limit`: a VM without volumes goes on without this log then, which is invalidated. Without a limit it is waited for as long as it takes.
fn drained(log: &SyncSender<Job>, limit: Option<Duration>) -> Option<(Term, Epoch)> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let (reply, answer) = sync_channel(1);
    give(log, Job::Drain(reply), deadline).ok()?;
    match deadline {
        Some(deadline) => answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?,
        None => answer.recv().ok()?,
    }
}

/// What becomes of the standby; nothing if it is of no use any more.
///
/// # Errors
/// It has died: then its host must not go on asking for the VM.
fn sentence(verdict: &Receiver<StandbyUse>, machine: &Machine) -> Result<Option<StandbyUse>, String> {
    loop {
        match verdict.recv_timeout(LOOK) {
            Ok(verdict) => return Ok(Some(verdict)),
            Err(RecvTimeoutError::Timeout) => alive(machine)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// Whether the standby's QEMU is there.
fn alive(machine: &Machine) -> Result<(), String> {
    match machine.exit() {
        None => Ok(()),
        Some(exit) => Err(format!("the standby is gone: {}", report(&exit.into_error()))),
    }
}

/// What a QEMU is, for `status`.
pub fn status(machine: &Machine, reason: &str, run_state: &str) -> MachineStatus {
    MachineStatus {
        pid: machine.pid(),
        qemu: machine.version().to_string(),
        accel: machine.accel(),
        accel_reason: reason.into(),
        run_state: run_state.into(),
        generation: Some(machine.generation()),
    }
}

/// A QEMU's RAM blocks in the stream's terms.
///
/// # Errors
/// The blocks are such that the format cannot describe them: see [`Layout::new`].
pub fn layout(machine: &Machine) -> Result<Layout, String> {
    let blocks = &machine.memory().layout().blocks;
    let blocks = blocks.iter().map(|b| BlockInfo { name: b.name.clone(), used: b.used, total: b.total }).collect();
    Layout::new(blocks).map_err(|e| report(&e))
}

/// The memory of a QEMU that nothing was loaded into yet.
pub struct Fresh(pub Arc<Memory>);

impl PageSink for Fresh {
    fn write(&mut self, block: u16, first: u64, data: &[u8]) -> io::Result<()> {
        let run = PageRun { block, first, count: (data.len() / PAGE_SIZE) as u32 };
        self.0.write_run(run, data).map_err(io::Error::other)
    }

    fn read(&mut self, block: u16, page: u64, into: &mut [u8; PAGE_SIZE]) -> io::Result<()> {
        self.0.read_run(PageRun { block, first: page, count: 1 }, into).map_err(io::Error::other)
    }
}

/// The standby QEMU's memory as the assembler writes it.
pub struct Sink {
    pub memory: Arc<Memory>,
    pub disks: Arc<Disks>,
    pub session: Term,
    /// The log, until it gets checkpoints.
    pub log: Option<SyncSender<Job>>,
    /// Something was written to memory or volumes.
    pub touched: bool,
}

impl PageSink for Sink {
    fn write(&mut self, block: u16, first: u64, data: &[u8]) -> io::Result<()> {
        if let Some(log) = &self.log {
            let job = Job::Copy { session: self.session, block, first, bytes: data.to_vec() };
            log.send(job).map_err(|_| io::Error::other("the log has ended"))?;
        }
        self.touched = true;
        let run = PageRun { block, first, count: (data.len() / PAGE_SIZE) as u32 };
        self.memory.write_run(run, data).map_err(io::Error::other)
    }

    fn volume(&mut self, volume: u16, operations: &[u8]) -> io::Result<()> {
        self.touched = true;
        self.disks.apply(self.session, volume, operations).map_err(io::Error::other)
    }

    fn read(&mut self, block: u16, page: u64, into: &mut [u8; PAGE_SIZE]) -> io::Result<()> {
        self.memory.read_run(PageRun { block, first: page, count: 1 }, into).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A take-over goes on without a log whose disk does not answer, whether the log has room for the question or not.
    #[test]
    fn a_log_that_hangs_is_not_waited_for() {
        let limit = Duration::from_millis(20);
        let (log, work) = sync_channel(1);
        assert_eq!(drained(&log, Some(limit)), None);
        assert!(matches!(work.try_recv(), Ok(Job::Drain(_))), "it is asked");
        let (other, _answer) = sync_channel(1);
        log.send(Job::Drain(other)).unwrap();
        assert_eq!(drained(&log, Some(limit)), None);
        // One that has ended says so at once; one that answers is heard.
        let at = Some((Term(3), Epoch(7)));
        let answers = thread::spawn(move || {
            let _full = work.recv();
            let Ok(Job::Drain(reply)) = work.recv() else { panic!("no question") };
            reply.send(at).unwrap();
        });
        assert_eq!(drained(&log, None), at);
        answers.join().unwrap();
        assert_eq!(drained(&log, None), None);
    }

    /// Nor does a session wait for it without end; and one whose disk hangs is not one that goes on.
    #[test]
    fn a_session_ends_whose_log_does_not_say_whether_it_goes_on() {
        let soon = || Instant::now() + Duration::from_millis(20);
        let (reply, answer) = sync_channel(1);
        assert_eq!(answered(&answer, true, soon()), Err(NO_ANSWER.into()));
        for said in [false, true] {
            reply.send(said).unwrap();
            assert_eq!(answered(&answer, true, soon()), Ok(said));
        }
        drop(reply);
        assert_eq!(answered(&answer, true, soon()), Ok(false), "it has ended");
        assert_eq!(answered(&answer, false, soon()), Ok(true), "there is none");
        // Its queue is full, and nobody takes anything out of it.
        let job = || Job::Settle(Term(1));
        let (log, work) = sync_channel(1);
        assert_eq!(give(&log, job(), Some(soon())), Ok(()));
        assert_eq!(give(&log, job(), Some(soon())), Err(NO_ANSWER.into()));
        drop(work);
        assert_eq!(give(&log, job(), None), Err("the log has ended".into()));
    }
}
