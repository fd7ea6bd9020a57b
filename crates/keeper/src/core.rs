//! The keeper's core: one thread that owns the protocol's state and does what it says.
//!
//! ```text
//!   control socket ─┐                          ┌─► arbiter ──► witness
//!   arbiter ────────┤                          ├─► VM's thread (QEMU, checkpoints)
//!   VM's thread ────┼─► Msg ─► Core ─► Protocol ┼─► session (sender, acknowledgements)
//!   session ────────┤           ▲        │     ├─► outlets (hold, release, mute)
//!   standby ────────┘       its clock  Action  └─► connector, journal
//! ```
//!
//! It never waits for the network: what could block has a thread of its own. Its clock does three things: it suspects a
//! peer that has been silent for too long; it notices that this host itself has stood still, and then distrusts what it
//! has not yet released; and it watches the uplink.

mod backup;
mod clock;
mod freeze;
mod health;
mod log;
mod prepare;
mod primary;
mod replica;
mod requests;
mod snapshot;
mod stall;
mod standing;
mod survivors;
mod volumes;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use ninefold_model::control::{CheckpointRecord, Response};
use ninefold_model::event::EventKind;
use ninefold_model::spec::{EpochPolicy, VmSpec};
use ninefold_model::status::{Counters, LogState, LogStatus, MachineStatus};
use ninefold_model::{Backup, Epoch, HostName, Record as WitnessRecord, Term};
use ninefold_net::announce::AnnouncePlan;
use ninefold_replica::continuation::Reign;
use ninefold_replica::protocol::{Action, Input, ProposalId, Protocol, Wanted};
use ninefold_replica::stream::{Layout, Pass, PassKind, Ready, Record};
use ninefold_replica::target::Target;
use ninefold_transport::Link;
use ninefold_transport::clock::Moment;

use self::backup::{BackupSide, SpareSide, Takeover};
use self::health::HealthSide;
pub use self::log::LogFailure;
use self::log::LogSide;
use self::prepare::Preparing;
use self::replica::Replica;
use self::snapshot::SnapshotSide;
use self::stall::StallSide;
use self::standing::StandingSide;
use self::survivors::{Absent, Survivors};
use self::volumes::VolumeWatch;
use crate::arbiter::Question;
use crate::bell::Bell;
use crate::capture::micros;
use crate::config::KeeperConfig;
use crate::connector::Connector;
use crate::disks::Disks;
use crate::health::images::Images;
use crate::journal::Journal;
use crate::metrics::Board;
use crate::msg::Msg;
use crate::outlets::Outlets;
use crate::parking::Parking;
use crate::priority;
use crate::vm::{Command, VmHandle};

/// The core looks at its clock at least this often.
const TICK: Duration = Duration::from_millis(10);
/// How long SIGTERM waits for a backup to take the VM.
const QUIT_LIMIT: Duration = Duration::from_secs(10);
/// After a first session that fails before it protects; each further failure doubles it.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest pause between two attempts.
const RETRY_LAST: Duration = Duration::from_secs(10);
/// A checkpoint that was sent and is not acknowledged for so long: the backup lives and does not work.
const ACK_LIMIT: Duration = Duration::from_secs(3);
/// A backup that is not ready for its first page after this long is given up.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// Why a VM is stopped whose guest has powered off.
const SHUT_DOWN: &str = "the guest shut down";

/// What the core is started with.
pub struct Parts {
    pub config: Arc<KeeperConfig>,
    pub outlets: Arc<Outlets>,
    pub disks: Arc<Disks>,
    pub images: Arc<Images>,
    pub journal: Journal,
    pub board: Arc<Board>,
    pub bell: Bell,
    pub inbox: Receiver<Msg>,
    pub core: Sender<Msg>,
    pub arbiter: Sender<Question>,
    pub connector: Connector,
    pub parking: Arc<Parking>,
}

/// SIGTERM has come.
struct Quitting {
    since: Instant,
    /// The VM was to be handed over.
    asked: bool,
}

/// See the [module](self).
pub struct Core {
    parts: Parts,
    protocol: Protocol,
    epochs: EpochPolicy,
    /// Why the witness is of no use, while it is of none.
    witness_error: Option<String>,
    /// What was last read of it, in case that it cannot be believed: what is read may be older than what is known here by now.
    doubt: Option<String>,
    vm: Option<VmHandle>,
    /// Counts the VM's threads, so that a late word of an earlier one is not taken for the present one's.
    generation: u64,
    /// Of which the present one's checkpoints are.
    reign: Reign,
    machine: Option<MachineStatus>,
    /// The VM that runs here as it was booted, here or elsewhere.
    booted: Option<VmSpec>,
    layout: Option<Layout>,
    /// The connector is at work.
    looking: bool,
    /// Why none of the other hosts became a backup when they were last asked.
    no_peer: Option<String>,
    /// The VM that ends has never run: its boot has failed.
    unborn: bool,
    /// When the last session failed before it protected, and how long to wait after that.
    retry: Option<(Instant, Duration)>,
    /// A peer that waits for its session to be opened.
    link: Option<Link>,
    log: LogSide,
    preparing: Preparing,
    snapshot: SnapshotSide,
    /// The running sessions.
    replicas: Vec<Replica>,
    survivors: Option<Survivors>,
    /// Backups that may come back with what they hold.
    absent: Vec<Absent>,
    /// The primary from which this host has taken over: the last of all to be asked whether it wants to be a backup.
    former: Option<HostName>,
    final_epoch: Option<Epoch>,
    /// Output is held.
    holding: bool,
    /// It need not be any more, but for what has to be on this host's disk first: see [`Disks::owed`].
    opening: Option<Vec<(usize, u64)>>,
    /// The guest has powered itself off.
    off: bool,
    /// It is to be stopped as soon as the protocol has been heard out.
    stop_due: bool,
    /// Released as a primary; held whole as a backup.
    committed: Epoch,
    /// Checkpoints that were sent and are not committed: number, when the guest ran again, what was measured.
    uncommitted: Vec<(Epoch, Instant, CheckpointRecord)>,
    /// The newest checkpoint that was recorded.
    measured: Epoch,
    uplink: Arc<AtomicBool>,
    uplink_lost: Option<Instant>,
    volumes: VolumeWatch,
    backup: Option<BackupSide>,
    health: HealthSide,
    standing: StandingSide,
    takeover: Option<Takeover>,
    spare: Option<SpareSide>,
    /// What this host has won cannot be resumed from: it has not run here.
    unloaded: bool,
    announcing: Option<(Instant, AnnouncePlan)>,
    /// An announcement is due and has not been sent.
    announce: bool,
    start_reply: Option<Sender<Response>>,
    quitting: Option<Quitting>,
    counters: Counters,
    last_tick: Moment,
    stall: StallSide,
    last_beat: Instant,
    beats: u64,
    done: bool,
}

impl Core {
    pub fn new(parts: Parts) -> Self {
        let wanted = Wanted { protection: parts.config.vm.protection, backups: parts.config.vm.backups.into() };
        let protocol = Protocol::new(parts.config.host.clone(), wanted);
        let now = Instant::now();
        Self {
            protocol,
            epochs: parts.config.epochs,
            witness_error: None,
            doubt: None,
            vm: None,
            generation: 0,
            reign: Reign { term: Term(0), generation: 0 },
            machine: None,
            booted: None,
            layout: None,
            looking: false,
            no_peer: None,
            unborn: false,
            retry: None,
            link: None,
            log: LogSide::new(),
            preparing: Preparing::default(),
            snapshot: SnapshotSide::default(),
            replicas: Vec::new(),
            survivors: None,
            absent: Vec::new(),
            former: None,
            final_epoch: None,
            holding: false,
            opening: None,
            off: false,
            stop_due: false,
            committed: Epoch(0),
            uncommitted: Vec::new(),
            measured: Epoch(0),
            uplink: Arc::new(AtomicBool::new(true)),
            uplink_lost: None,
            volumes: VolumeWatch::new(parts.disks.iter().count()),
            backup: None,
            health: HealthSide::new(&parts),
            standing: StandingSide::default(),
            takeover: None,
            spare: None,
            unloaded: false,
            announcing: None,
            announce: false,
            start_reply: None,
            quitting: None,
            counters: Counters::default(),
            last_tick: Moment::now(),
            stall: StallSide::new(),
            last_beat: now,
            beats: 0,
            done: false,
            parts,
        }
    }

    /// Until SIGTERM.
    pub fn run(mut self) {
        priority::raise();
        while !self.done {
            let msg = match self.parts.inbox.recv_timeout(TICK) {
                Ok(msg) => Some(msg),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Before anything that has waited: a host that stood still must not act on it as if no time had passed.
            if self.last_tick.elapsed() >= TICK {
                self.tick();
            }
            if let Some(msg) = msg {
                self.take(msg);
            }
        }
        // The VM ends with this keeper then, whatever is still being synced.
        let over = self.protocol.nobody_may_claim();
        self.stand_down();
        if over {
            self.parts.disks.are_over();
        }
        self.parts.parking.clear();
    }

    fn failure_timeout(&self) -> Duration {
        self.parts.config.timing.failure_timeout()
    }

    fn event(&self, kind: EventKind) {
        self.parts.journal.event(kind);
    }

    /// A host that has more of the VM than this one: a primary's backup, a backup's primary.
    fn peer(&self) -> Option<&HostName> {
        self.replicas.first().map(|r| &r.backup).or_else(|| self.protocol.primary())
    }

    fn replica(&mut self, session: Term) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|r| r.name() == session)
    }

    /// Whether another backup is looked for.
    fn wants_peer(&self) -> bool {
        self.protocol.wants_peer() && self.layout.is_some()
    }

    fn input(&mut self, input: Input) {
        self.doubt_if_late(&input);
        let (doubted, answered) = (self.protocol.doubts(), matches!(input, Input::Answer { .. }));
        let mut actions = Vec::new();
        self.protocol.handle(input, &mut actions);
        self.tell_log_term();
        if doubted && answered && !self.protocol.doubts() {
            self.confirmed();
        }
        for action in actions {
            self.act(action);
        }
        self.check_disowned();
        self.relaunch();
        if std::mem::take(&mut self.stop_due) {
            self.input(Input::Stop { reason: SHUT_DOWN.into() });
        }
        self.parts.board.role(self.protocol.role(), self.protocol.protection(), self.protocol.term());
    }

    /// Whether the guest has powered off, and what it did last is on the disks of all its hosts, or may go there.
    fn is_off_and_done(&self) -> bool {
        let backups_have_it = || self.final_epoch.is_some_and(|last| last <= self.committed);
        self.off && self.log_has_the_last() && (!self.holding || backups_have_it())
    }

    fn propose(&self, id: ProposalId, expected: Option<WitnessRecord>, new: WitnessRecord, again: bool) {
        let _ = self.parts.arbiter.send(Question::Propose { id, expected, new, again });
    }

    /// What the witness answers cannot be believed, for this reason; or it can.
    fn doubt_witness(&mut self, doubt: Option<String>) {
        if self.witness_error != doubt {
            self.event(match &doubt {
                Some(reason) => EventKind::WitnessDoubted { reason: reason.clone() },
                None => EventKind::WitnessReachable,
            });
            self.witness_error = doubt;
        }
    }

    /// The same of what was read. Once may be a word that has been overtaken: not so the next, which was asked for later.
    fn doubt_read(&mut self, doubt: Option<String>) {
        let before = std::mem::replace(&mut self.doubt, doubt.clone());
        if doubt.is_none() || before.is_some() {
            self.doubt_witness(doubt);
        }
    }

    fn stop_when_off(&mut self) {
        if self.is_off_and_done() {
            self.input(Input::Stop { reason: SHUT_DOWN.into() });
        }
    }

    // ---- messages ----

    fn take(&mut self, msg: Msg) {
        match msg {
            Msg::Request { request, reply } => self.request(request, reply),
            Msg::Quit => self.quit(),
            Msg::WitnessAnswer { id, outcome } => {
                if self.protocol.awaits(id) {
                    let doubt = self.protocol.disbelieves_answer(&outcome);
                    self.doubt_witness(doubt);
                }
                self.input(Input::Answer { id, outcome });
            }
            Msg::WitnessHolds(found) => {
                let doubt = self.protocol.disbelieves(found.as_ref()).or_else(|| self.log_doubts(found.as_ref()));
                self.doubt_read(doubt);
                let Some(record) = found else { return };
                self.record_seen(&record);
                self.check_overtaken(&record);
                self.input(Input::Observed(record));
            }
            Msg::WitnessRefuses { reason } => self.doubt_read(Some(format!("it refuses: {reason}"))),
            Msg::StartFrom { found, force } => self.start_from(found, force),
            Msg::StartFailed(reason) => {
                if let Some(reply) = self.snapshot.asks_of_log() {
                    self.tell_of_log(Err(reason.clone()), reply);
                }
                self.restore_refused(&reason);
                self.start_failed(reason);
            }
            Msg::Witness { error } => {
                self.event(match &error {
                    Some(reason) => EventKind::WitnessUnreachable { reason: reason.clone() },
                    None => EventKind::WitnessReachable,
                });
                self.witness_error = error;
            }
            Msg::VmStarted { generation, status, layout, ports, up } => {
                // One that is not wanted any more learns it by the end of `up`.
                if generation != self.generation || self.vm.is_none() {
                    return;
                }
                self.parts.disks.used();
                self.machine = Some(status);
                self.booted = Some(self.parts.config.vm.clone());
                self.layout = Some(layout);
                self.guest_starts();
                if let Err(error) = self.parts.outlets.attach(ports) {
                    tracing::error!(%error, "the VM's sockets cannot be served");
                }
                // Unless a log of its former life has still to be disowned.
                if !self.holding {
                    self.let_volumes();
                    self.open_gate();
                }
                let _ = up.send(());
            }
            Msg::VmRunning { generation } => {
                if generation != self.generation || self.vm.is_none() {
                    return;
                }
                self.show_standing();
                if let Some(reply) = self.start_reply.take() {
                    let _ = reply.send(Response::Done);
                }
                self.guest_runs();
            }
            Msg::Stands { generation, standing, epoch } => self.stands(generation, standing, epoch),
            Msg::VmLost { generation, reason } => {
                let ours = self.vm.is_some() && generation == self.generation;
                if ours && !self.trial_lost(&reason) {
                    // Until its owner has been told that it runs it has not lived.
                    self.unborn = self.start_reply.is_some();
                    self.start_failed(reason.clone());
                    self.input(Input::MachineLost { reason });
                    self.unborn = false;
                }
            }
            Msg::VmShutdown { generation } if generation != self.generation => {}
            Msg::VmShutdown { .. } => {
                self.off = true;
                self.stop_when_off();
            }
            Msg::Stuck { generation, step, waited } => self.stuck(generation, &step, waited),
            Msg::GuestFailed { generation, failure } => self.guest_failed(generation, failure),
            Msg::DumpProgress { generation, progress } => self.dump_progress(generation, progress),
            Msg::Dumped { generation, outcome } => self.dumped(generation, outcome),
            Msg::ImageKept { image, before, reason, failure } => self.image_kept(image, before, reason, failure),
            Msg::SyncProgress { target: Target::Snapshot, progress } => self.snapshot_copied(progress),
            Msg::CannotReplicate { target: Target::Snapshot, reason } => self.snapshot_failed(reason),
            // How far its copy is, a log does not tell.
            Msg::SyncProgress { target: Target::Log, .. } => {}
            Msg::SyncProgress { target: Target::Session(session), progress } => {
                if let Some(replica) = self.replica(session) {
                    replica.sync = Some(progress);
                }
            }
            // Who is not answered is left out.
            Msg::FirstCheckpoint { generation, .. } if generation != self.generation => {}
            Msg::FirstCheckpoint { target: Target::Log, epoch, held, .. } => {
                if self.log.handle.is_some() && self.log.state == LogState::Copying {
                    self.log_first(epoch);
                    let _ = held.send(());
                }
            }
            // Output does not wait for one.
            Msg::FirstCheckpoint { target: Target::Snapshot, .. } => {}
            Msg::FirstCheckpoint { target: Target::Session(session), epoch, held, .. } => {
                if let Some(replica) = self.replica(session) {
                    replica.first = Some(epoch);
                    self.input(Input::FirstCheckpoint { session, epoch });
                    let _ = held.send(());
                }
            }
            Msg::FinalTaken { generation, epoch } => {
                // Nothing may have come of the switchover meanwhile.
                if generation == self.generation && (self.off || self.protocol.hands_over()) {
                    self.final_epoch = Some(epoch);
                    // A guest that has powered off is handed over to nobody.
                    if !self.off {
                        self.input(Input::FinalTaken { epoch });
                    }
                }
            }
            Msg::CannotReplicate { target: Target::Log, reason } => {
                if let Some(id) = self.log.handle.as_ref().map(|h| h.id) {
                    self.log_failed(id, reason.into());
                }
            }
            Msg::CannotReplicate { target: Target::Session(session), reason }
            | Msg::SessionEnded { session, reason } => {
                self.lose_session(session, reason);
            }
            Msg::NoPeer { reason } => {
                self.looking = false;
                self.no_peer = Some(reason);
            }
            Msg::PeerConnected { link } => {
                self.looking = false;
                self.no_peer = None;
                if self.wants_peer() {
                    let peer = link.peer().clone();
                    self.link = Some(link);
                    self.input(Input::PeerAvailable { peer });
                }
            }
            Msg::Offer { hello, writer, handle, go } => self.offer(&hello, writer, handle, &go),
            Msg::RefusedPeer { peer, reason } => self.event(EventKind::Refused { peer, reason }),
            Msg::BaseForgotten { target: Target::Session(session) } => self.base_forgotten(session),
            // Neither holds anything before it is copied to.
            Msg::BaseForgotten { target: Target::Log | Target::Snapshot } => {}
            Msg::Base { session, epoch, changes } => self.base(session, epoch, &changes),
            Msg::ConfiguredOtherwise { session, differences } => self.configured_otherwise(session, differences),
            Msg::SessionReady { session } => self.session_ready(session),
            Msg::VolumesSynced { session, rounds, bytes, rest } => {
                if let Some(replica) = self.replica(session) {
                    replica.volume_bytes = bytes;
                    self.add_sink(session, rounds, rest);
                }
            }
            Msg::Acked { session, epoch, sent } => {
                self.heard(session, sent);
                self.acked(session, epoch);
            }
            Msg::Sent { session, epoch, resumed, record } => self.sent(session, epoch, resumed, record),
            Msg::PeerBeat { session, up, echo } => {
                if let Some(replica) = self.replica(session) {
                    replica.uplink = up;
                }
                self.heard(session, echo);
            }
            Msg::StandbyReady { session, status, base } => {
                if let Some(backup) = self.backup.as_mut().filter(|b| b.session == session) {
                    backup.ready = Some(Moment::now());
                    self.machine = Some(status);
                    if let Some(base) = base {
                        let mut changes = Vec::new();
                        base.put_changes(&mut changes);
                        self.tell_primary(&Record::Base { session: session.0, epoch: base.epoch, changes: &changes });
                    }
                    self.tell_differences(session);
                    let ready = Record::Ready { session: session.0, what: Ready::Receive };
                    self.tell_primary(&ready);
                }
            }
            Msg::Differs { session, volume, first, bits } => {
                if self.backup.as_ref().is_some_and(|b| b.session == session) {
                    self.tell_primary(&Record::VolumeDiffers { session: session.0, volume, first, bits: &bits });
                }
            }
            Msg::Held { session, epoch, first } => {
                self.input(Input::CheckpointHeld { session, epoch, first });
            }
            Msg::LogHolds { id, epoch, first, commit_bytes, bytes, commit_us } => {
                let status = LogStatus { state: LogState::On, epoch, commit_bytes, bytes, commit_us };
                self.log_holds(id, epoch, first, status);
            }
            Msg::LogBegun { id } => self.log_begun(id),
            Msg::Stood { id, ticket } => self.stood(id, ticket),
            Msg::LogFailed { id, failure } => self.log_failed(id, failure),
            Msg::Recovery { id, news } => self.recovery_news(id, news),
            Msg::Snapshot { id, news } => self.snapshot_news(id, news),
            Msg::Frozen { generation, end } => self.frozen_end(generation, end),
            Msg::Synced { .. } => {}
            Msg::BoundTo { session, term } => {
                if let Some(primary) = self.protocol.primary().cloned() {
                    let backups = vec![Backup { host: self.parts.config.host.clone(), session }];
                    self.input(Input::BoundNotice { session, record: WitnessRecord { term, primary, backups } });
                }
            }
            Msg::Relinquished { session, reason } => self.primary_gone(session, reason, true),
            Msg::PrimaryGone { session, reason } => self.primary_gone(session, reason, false),
            Msg::Loaded { session, loaded } => {
                let ours = self.backup.as_ref().is_some_and(|b| b.session == session);
                if let (true, Some(takeover)) = (ours, &mut self.takeover) {
                    takeover.loaded = Some(loaded);
                    self.standby_ready();
                    self.try_resume();
                }
            }
            Msg::StandbyWaits { session } => {
                if self.backup.as_ref().is_some_and(|b| b.session == session) {
                    self.standby_ready();
                }
            }
            Msg::LoadFailed { session, reason } => self.load_failed(session, &reason),
        }
    }

    // ---- what the protocol says ----

    fn act(&mut self, action: Action) {
        match action {
            Action::Prepare { id, new } => self.prepare(id, new),
            Action::Propose { id, expected, new } => self.propose(id, expected, new, false),
            Action::AskAgain { id, expected, new } => self.propose(id, expected, new, true),
            Action::Boot => {
                self.drop_restore("the VM is booted");
                self.health_boots();
                self.boot(None);
            }
            Action::ResumeFrom { epoch } => {
                self.won();
                if let Some(takeover) = &mut self.takeover {
                    takeover.won = Some((epoch, micros(takeover.suspected.elapsed())));
                }
                self.try_resume();
            }
            Action::Hold => {
                self.holding = true;
                // What is still held waits for the backup with the rest.
                self.opening = None;
                self.at_work(|outlets, look| outlets.hold(look));
                self.parts.disks.hold();
            }
            Action::Release { epoch } => {
                self.release(epoch);
                self.committed = epoch;
                self.commit_disks();
                self.measure_committed();
                // What a guest did last before it powered off is on the disks of all its hosts.
                self.stop_due |= self.is_off_and_done();
            }
            Action::OpenGate => {
                self.holding = false;
                self.let_volumes();
                self.open_gate();
                // Or on those of this host alone: the witness has said that it may end without the others.
                self.stop_due |= self.is_off_and_done();
            }
            Action::GoOn => {
                if !self.off {
                    self.final_epoch = None;
                }
                self.command(Command::GoOn);
            }
            Action::OpenSession { session, peer } => self.open_session(session, peer),
            Action::CloseSession { session } => self.part_session(session),
            Action::TakeFinalCheckpoint => self.command(Command::TakeFinal),
            Action::SendBound { session, record, first } => self.bound(session, record.term, first),
            Action::SendRelinquish { session, reason } => {
                let epoch = self.committed;
                if let Some(replica) = self.replica(session) {
                    replica.session.relinquish(epoch, reason);
                }
            }
            // Both are dealt with where the offer is.
            Action::AcceptSession { .. } | Action::RefuseSession { .. } => {}
            Action::SendAck { session, epoch } => {
                self.committed = epoch;
                let pass = Pass { session: session.0, kind: PassKind::Checkpoint, epoch };
                self.tell_primary(&Record::Ack { pass });
            }
            Action::StandDown => {
                self.stand_down();
                if self.quitting.is_some() {
                    self.done = true;
                }
            }
            Action::Refuse { reason } => {
                tracing::warn!(%reason, "refused");
                self.restore_refused(&reason);
                self.start_failed(reason);
            }
            Action::Emit(event) => {
                match &event {
                    EventKind::Stopped { .. } => {
                        self.parts.disks.are_over();
                        self.remove_log();
                    }
                    // Of its host's memory. What is in the log is still there, and on the disks.
                    EventKind::Lost { .. } => {
                        // What a backup has acknowledged may be in its log and not yet in the images.
                        if !self.unloaded {
                            self.parts.disks.are_over();
                        }
                        self.log_after_loss();
                    }
                    _ => {}
                }
                match event {
                    EventKind::Lost { reason } if self.unborn => self.event(EventKind::StartFailed { reason }),
                    event => self.event(event),
                }
            }
        }
    }

    /// Ends whatever of the VM is here. Mute first: nothing may leave while the rest is taken down.
    fn stand_down(&mut self) {
        self.give_up_preparing();
        let _ = self.parts.arbiter.send(Question::Cancel);
        self.parts.outlets.mute();
        self.parts.disks.discard();
        self.drop_snapshot();
        self.drop_restore("the witness did not grant the VM");
        self.keep_log();
        self.log.part();
        self.drop_log();
        self.announcing = None;
        self.announce = false;
        self.vm = None;
        self.survivors = None;
        self.absent.clear();
        self.health.stand_down(self.parts.config.vm.watchdog.clone());
        // A word of farewell that is still queued goes out: the sender empties its queue before it ends.
        for replica in self.replicas.drain(..) {
            replica.session.finish();
        }
        self.park_backup();
        self.drop_backup();
        self.parts.outlets.detach();
        self.takeover = None;
        self.unloaded = false;
        self.machine = None;
        self.booted = None;
        self.layout = None;
        self.link = None;
        self.final_epoch = None;
        self.holding = false;
        self.opening = None;
        self.off = false;
        self.stop_due = false;
        self.forget_standing();
        self.stall.reset();
        self.uncommitted.clear();
        self.committed = Epoch(0);
    }
}
