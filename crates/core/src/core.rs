//! The core itself: what it knows, and how an event changes that.

use std::sync::Arc;
use std::time::Duration;

use ninefold_control::{OperationKind, Refusal, Reply};
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::EventKind;
use ninefold_model::spec::{EpochPolicy, Protection, VmSpec};
use ninefold_model::status::{Counters, LogState, LogStatus, MachineStatus, Role};
use ninefold_model::{Backup, Epoch, HostName, Record as WitnessRecord, Term};
use ninefold_replica::protocol::{Action, Input, ProposalId, Protocol, Wanted};
use ninefold_replica::stream::Layout;
use ninefold_replica::stream::Reign;
use ninefold_replica::target::Target;

use crate::announce::AnnouncePlan;
use crate::backup::{BackupSide, Resumed, Resuming, SpareSide, Takeover};
use crate::effect::{
    Close, DisksOrder, Effect, GuestIoOrder, GuestOrder, Metric, ParkingOrder, PrimaryOrder, SessionOrder, VmOrder,
    WitnessRequest, Word,
};
use crate::event::{Event, Observed, RequestId, Source, WaiterId};
use crate::former_backups::{Absent, FormerBackups, KEEP};
use crate::guest_state::StandingSide;
use crate::health::HealthSide;
use crate::log::LogSide;
use crate::naming::Naming;
use crate::operations::Operations;
use crate::prepare::Preparing;
use crate::refusal::{self, WitnessTrouble};
use crate::replica::Replica;
use crate::requests::Quitting;
use crate::resting::Resting;
use crate::retire::Retirement;
use crate::rules::Rules;
use crate::settings::Settings;
use crate::snapshot::SnapshotSide;
use crate::stall::StallSide;
use crate::time::{Monotonic, Now, micros};
use crate::volumes::VolumeWatch;

/// The core wants to be told of the time at least this often.
pub const TICK: Duration = Duration::from_millis(10);
/// How long SIGTERM waits for a backup to take the VM.
pub(crate) const QUIT_LIMIT: Duration = Duration::from_secs(10);
/// After a first session that fails before it protects; each further failure doubles it.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest pause between two attempts.
pub(crate) const RETRY_LAST: Duration = Duration::from_secs(10);
/// A checkpoint that was sent and is not acknowledged for so long: the backup lives and does not work.
pub(crate) const ACK_LIMIT: Duration = Duration::from_secs(3);
/// A backup that is not ready for its first page after this long is given up; and one that has not loaded its first checkpoint to try it
/// so long after that was sent. It gives up loading itself before, and says why.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(30);

/// Why a VM is stopped whose guest has powered off.
pub(crate) const SHUT_DOWN: &str = "the guest shut down";
/// Why one is that was not to be started after all.
pub(crate) const CANCELLED: &str = "its start was cancelled";

/// What decides for one VM on one host. See the [`crate`].
pub struct Core {
    pub(crate) settings: Arc<Settings>,
    pub(crate) rules: Rules,
    /// The time of the event at hand.
    pub(crate) now: Now,
    /// What is to be done for it.
    pub(crate) effects: Vec<Effect>,
    /// What was seen at the last tick.
    pub(crate) observed: Observed,
    pub(crate) protocol: Protocol,
    pub(crate) epochs: EpochPolicy,
    /// Why the witness is of no use, while it is of none.
    pub(crate) witness_trouble: Option<WitnessTrouble>,
    /// The primary of the record that it held when it was last read.
    pub(crate) recorded: Option<HostName>,
    /// What was last read of it, in case that it cannot be believed: what is read may be older than what is known here by now.
    pub(crate) doubt: Option<String>,
    /// A thread runs the VM here, or is about to.
    pub(crate) has_vm: bool,
    /// Counts the VM's threads, so that a late word of an earlier one is not taken for the present one's.
    pub(crate) generation: u64,
    /// Of which the present one's checkpoints are.
    pub(crate) reign: Reign,
    pub(crate) machine: Option<MachineStatus>,
    /// The VM that runs here as it was booted, here or elsewhere.
    pub(crate) booted: Option<VmSpec>,
    pub(crate) layout: Option<Layout>,
    /// A backup is being looked for.
    pub(crate) looking: bool,
    /// Why none of the other hosts became a backup when they were last asked.
    pub(crate) no_peer: Option<String>,
    /// The VM that ends has never run: its boot has failed.
    unborn: bool,
    /// When the last session failed before it protected, and how long to wait after that.
    pub(crate) retry: Option<(Monotonic, Duration)>,
    /// Hosts that have held output up for nothing, and are not asked again for a while.
    pub(crate) resting: Vec<Resting>,
    /// A peer that is connected and waits for its session to be opened.
    pub(crate) peer: Option<HostName>,
    pub(crate) log: LogSide,
    pub(crate) preparing: Preparing,
    pub(crate) snapshot: SnapshotSide,
    /// The running sessions.
    pub(crate) replicas: Vec<Replica>,
    pub(crate) former_backups: Option<FormerBackups>,
    /// Backups that may come back with what they hold.
    pub(crate) absent: Vec<Absent>,
    /// The primary from which this host has taken over: the last of all to be asked whether it wants to be a backup.
    pub(crate) former: Option<HostName>,
    pub(crate) final_epoch: Option<Epoch>,
    /// Output is held.
    pub(crate) holding: bool,
    /// It need not be any more, but for what has to be on this host's disk first.
    pub(crate) opening: bool,
    /// It is not known yet whether anything has to be.
    asked_to_open: bool,
    /// The guest has powered itself off.
    pub(crate) off: bool,
    /// The VM is to be stopped as soon as the protocol has been heard out, and why.
    pub(crate) stop_due: Option<&'static str>,
    /// Released as a primary; held whole as a backup.
    pub(crate) committed: Epoch,
    /// Checkpoints that were sent and are not committed: number, when the guest ran again, what was measured.
    pub(crate) uncommitted: Vec<(Epoch, Monotonic, CheckpointRecord)>,
    /// The newest checkpoint that was recorded.
    pub(crate) measured: Epoch,
    pub(crate) uplink_lost: Option<Monotonic>,
    pub(crate) volumes: VolumeWatch,
    pub(crate) backup: Option<BackupSide>,
    pub(crate) health: HealthSide,
    pub(crate) standing: StandingSide,
    pub(crate) takeover: Option<Takeover>,
    /// A loaded QEMU is being started.
    pub(crate) resuming: Option<Box<Resuming>>,
    /// It runs, and whether output leaves is not known yet.
    pub(crate) resumed: Option<Box<Resumed>>,
    pub(crate) spare: Option<SpareSide>,
    /// What this host has won cannot be resumed from: it has not run here.
    pub(crate) unloaded: bool,
    pub(crate) announcing: Option<(Monotonic, AnnouncePlan)>,
    /// An announcement is due and has not been sent.
    pub(crate) announce: bool,
    /// Somebody has asked for a start, and the VM does not run yet.
    pub(crate) starting: bool,
    /// That start is not wanted any more. It has come so far that it ends with the VM.
    pub(crate) start_cancelled: bool,
    /// It was asked for by force.
    pub(crate) start_forced: bool,
    /// What was wanted before somebody asked for protection, for which he waits.
    pub(crate) before_protect: Protection,
    pub(crate) retirement: Retirement,
    pub(crate) naming: Naming,
    pub(crate) operations: Operations,
    pub(crate) quitting: Option<Quitting>,
    pub(crate) counters: Counters,
    pub(crate) stall: StallSide,
    pub(crate) last_beat: Monotonic,
    pub(crate) beats: u64,
    pub(crate) done: bool,
}

impl Core {
    /// Of a keeper that begins now, on whose host `committed` is on record as the committed image (none: that of the configuration).
    pub fn new(settings: Settings, committed: Option<ninefold_model::spec::Boot>, now: Now) -> Self {
        Self::with_rules(settings, committed, now, Rules::ALL)
    }

    /// One that may break rules of the protocol, so that the simulator can show what each is for.
    #[doc(hidden)]
    pub fn with_rules(
        settings: Settings,
        committed: Option<ninefold_model::spec::Boot>,
        now: Now,
        rules: Rules,
    ) -> Self {
        let wanted = Wanted { protection: settings.vm.policy.protection, backups: settings.vm.policy.backups.into() };
        let protocol = Protocol::with_rules(settings.host.clone(), wanted, rules.protocol);
        Self {
            rules,
            protocol,
            now,
            effects: Vec::new(),
            observed: Observed { uplink: true, ..Observed::default() },
            epochs: settings.vm.policy.epochs,
            witness_trouble: None,
            doubt: None,
            recorded: None,
            has_vm: false,
            generation: 0,
            reign: Reign { term: Term(0), generation: 0 },
            machine: None,
            booted: None,
            layout: None,
            looking: false,
            no_peer: None,
            unborn: false,
            retry: None,
            resting: Vec::new(),
            peer: None,
            log: LogSide::new(now.monotonic),
            preparing: Preparing::default(),
            snapshot: SnapshotSide::default(),
            replicas: Vec::new(),
            former_backups: None,
            absent: Vec::new(),
            former: None,
            final_epoch: None,
            holding: false,
            opening: false,
            asked_to_open: false,
            off: false,
            stop_due: None,
            committed: Epoch(0),
            uncommitted: Vec::new(),
            measured: Epoch(0),
            uplink_lost: None,
            volumes: VolumeWatch::new(settings.volume_blocks.len(), settings.budget),
            backup: None,
            health: HealthSide::new(&settings, committed, now.monotonic),
            standing: StandingSide::default(),
            takeover: None,
            resuming: None,
            resumed: None,
            spare: None,
            unloaded: false,
            announcing: None,
            announce: false,
            starting: false,
            start_cancelled: false,
            start_forced: false,
            before_protect: Protection::None,
            retirement: Retirement::default(),
            naming: Naming::new(settings.label.clone()),
            operations: Operations::new(settings.incarnation),
            quitting: None,
            counters: Counters::default(),
            stall: StallSide::new(now.boottime),
            last_beat: now.monotonic,
            beats: 0,
            done: false,
            settings: Arc::new(settings),
        }
    }

    /// Takes in an event that happens now, and adds what is to be done to `effects`.
    pub fn step(&mut self, now: Now, event: Event, effects: &mut Vec<Effect>) {
        self.now = now;
        self.take(event);
        effects.append(&mut self.effects);
    }

    /// Whether the keeper is to end: with [`Event::End`], after which nothing is to be given to the core.
    pub fn is_done(&self) -> bool {
        self.done && !self.log.is_being_removed()
    }

    /// The QEMU that waits with a checkpoint loaded, as long as it may come to be resumed. Any other is of no use.
    pub fn loaded(&self) -> Option<Source> {
        let waits = self.takeover.as_ref().and_then(Takeover::source);
        waits.or_else(|| self.resuming.as_ref().map(|r| r.source)).or_else(|| self.resumed.as_ref().map(|r| r.source))
    }

    pub(crate) fn failure_timeout(&self) -> Duration {
        self.settings.vm.policy.timing.failure_timeout()
    }

    /// For how long it has been so since `moment`.
    pub(crate) fn elapsed(&self, moment: Monotonic) -> Duration {
        self.now.monotonic.since(moment)
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn event(&mut self, kind: EventKind) {
        self.effect(Effect::Publish(kind.clone()));
        self.operations_hear(&kind);
    }

    pub(crate) fn measure(&mut self, metric: Metric) {
        self.effect(Effect::Measure(metric));
    }

    pub(crate) fn reply(&mut self, to: RequestId, reply: Reply) {
        let reply = self.begun(to, reply);
        self.effect(Effect::Reply { to, reply });
    }

    pub(crate) fn ask(&mut self, question: WitnessRequest) {
        self.effect(Effect::Ask(question));
    }

    pub(crate) fn guest_io(&mut self, order: GuestIoOrder) {
        self.effect(Effect::GuestIo(order));
    }

    pub(crate) fn disks(&mut self, order: DisksOrder) {
        self.effect(Effect::Disks(order));
    }

    pub(crate) fn parking(&mut self, order: ParkingOrder) {
        self.effect(Effect::Parking(order));
    }

    pub(crate) fn guest(&mut self, order: GuestOrder) {
        self.effect(Effect::Guest(order));
    }

    /// To the VM's thread, if there is one.
    pub(crate) fn command(&mut self, order: VmOrder) {
        if self.has_vm {
            self.effect(Effect::Vm(order));
        }
    }

    pub(crate) fn session(&mut self, session: Term, order: SessionOrder) {
        self.effect(Effect::Session { session, order });
    }

    /// About the session in which this host is the backup, if it is.
    pub(crate) fn primary(&mut self, order: PrimaryOrder) {
        if let Some(session) = self.backup.as_ref().map(|b| b.session) {
            self.effect(Effect::Primary { session, order });
        }
    }

    pub(crate) fn tell_primary(&mut self, word: Word) {
        self.primary(PrimaryOrder::Say(word));
    }

    /// A host that has more of the VM than this one: a primary's backup, a backup's primary.
    pub(crate) fn other(&self) -> Option<&HostName> {
        self.replicas.first().map(|r| &r.backup).or_else(|| self.protocol.primary())
    }

    pub(crate) fn replica(&mut self, session: Term) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|r| r.session == session)
    }

    /// Whether another backup is looked for. Not while the VM's QEMU is to be launched anew: its sessions are ending for that, and with another one
    /// there would never be none.
    pub(crate) fn wants_peer(&self) -> bool {
        self.protocol.wants_peer() && self.layout.is_some() && !self.is_to_relaunch()
    }

    pub(crate) fn forget_peer(&mut self) {
        if self.peer.take().is_some() {
            self.effect(Effect::ForgetPeer);
        }
    }

    pub(crate) fn input(&mut self, input: Input) {
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
        self.check_invalidated();
        self.relaunch();
        if let Some(reason) = self.stop_due.take() {
            self.input(Input::Stop { reason: reason.into() });
        }
        let (role, protection, term) = (self.protocol.role(), self.protocol.protection(), self.protocol.term());
        self.measure(Metric::Role { role, protection, term });
    }

    /// Whether the guest has powered off, what it did last is on the disks of all its hosts, or may go there, and what it said last has left.
    pub(crate) fn is_off_and_done(&self) -> bool {
        let backups_have_it = || self.final_epoch.is_some_and(|last| last <= self.committed);
        self.off && self.log_has_the_last() && (!self.holding || backups_have_it()) && self.has_let_go()
    }

    fn propose(&mut self, id: ProposalId, expected: Option<WitnessRecord>, new: WitnessRecord, again: bool) {
        self.ask(WitnessRequest::Propose { id, expected, new, again });
    }

    /// What the witness answers cannot be believed, for this reason; or it can.
    pub(crate) fn doubt_witness(&mut self, doubt: Option<String>) {
        let trouble = doubt.map(WitnessTrouble::Doubted);
        if self.witness_trouble != trouble {
            self.event(match &trouble {
                Some(trouble) => EventKind::WitnessDoubted { reason: trouble.reason().to_owned() },
                None => EventKind::WitnessReachable,
            });
            self.witness_trouble = trouble;
        }
    }

    /// The same of what was read. Once may be a word that has been overtaken: not so the next, which was asked for later.
    fn doubt_read(&mut self, doubt: Option<String>) {
        let before = std::mem::replace(&mut self.doubt, doubt.clone());
        if doubt.is_none() || before.is_some() {
            self.doubt_witness(doubt);
        }
    }

    pub(crate) fn stop_when_off(&mut self) {
        if self.is_off_and_done() {
            self.input(Input::Stop { reason: SHUT_DOWN.into() });
        }
    }

    // ---- the gate ----

    /// From now on output waits for its epoch.
    pub(crate) fn hold_output(&mut self) {
        let awake = self.stall.awake;
        self.guest_io(GuestIoOrder::Hold { awake });
    }

    /// The VM goes on alone: lets all output go, as soon as what it may tell of is durable. While it was held the guest's flushes were
    /// answered from memory; where an acknowledgement means the disk, that was to be another host's.
    pub(crate) fn open_gate(&mut self) {
        let (by_log, awake) = (self.log_is_on() || self.log.images_wait.is_some(), self.stall.awake);
        (self.opening, self.asked_to_open) = (true, true);
        self.guest_io(GuestIoOrder::Open { by_log, awake });
    }

    pub(crate) fn try_open_gate(&mut self) {
        if self.opening {
            let awake = self.stall.awake;
            self.guest_io(GuestIoOrder::TryOpen { awake });
        }
    }

    /// What is still held waits for its epochs with the rest.
    fn stay_shut(&mut self) {
        if std::mem::take(&mut self.opening) {
            self.asked_to_open = false;
            self.guest_io(GuestIoOrder::StayShut);
        }
    }

    /// Whether it is not known yet if output of the VM's life up to now is held.
    pub(crate) fn awaits_gate(&self) -> bool {
        self.asked_to_open
    }

    fn gate(&mut self, open: bool) {
        // Unless it is to stay shut by now.
        if self.opening {
            self.opening = !open;
        }
        self.asked_to_open = false;
        self.go_on_resumed();
        // A guest that has powered itself off ends; it is not launched anew.
        self.stop_when_off();
        self.relaunch();
    }

    // ---- events ----

    fn take(&mut self, event: Event) {
        match event {
            Event::Tick(observed) => {
                self.observed = observed;
                self.tick();
            }
            Event::Request { id, request, token, seen } => {
                if self.unless_begun(id, &request, token) {
                    self.request(id, request, seen);
                }
            }
            Event::Quit => self.quit(),
            Event::End => self.end(),
            Event::WitnessAnswer { id, outcome } => {
                if self.protocol.awaits(id) {
                    let doubt = self.protocol.disbelieves_answer(&outcome);
                    self.doubt_witness(doubt);
                }
                self.input(Input::Answer { id, outcome });
            }
            Event::WitnessHolds(found) => {
                self.recorded = found.as_ref().map(|record| record.primary.clone());
                self.not_retired();
                let doubt = self.protocol.disbelieves(found.as_ref()).or_else(|| self.log_doubts(found.as_ref()));
                self.doubt_read(doubt);
                let Some(record) = found else { return };
                self.record_seen(&record);
                self.check_overtaken(&record);
                self.input(Input::Observed(record));
            }
            Event::WitnessRefuses { reason } => self.doubt_read(Some(format!("it refuses: {reason}"))),
            Event::StartFrom { found, force, behind } => self.start_from(found, force, behind.as_ref()),
            Event::WitnessRetired(tombstone) => self.was_retired(tombstone),
            Event::RetireFrom { found, force } => self.retire_from(found, force),
            Event::RetireFailed(refusal) => self.retire_failed(refusal),
            Event::Labelled(label) => self.labelled(label),
            Event::Named { label, failure } => self.named(label, failure),
            Event::RenameFailed(refusal) => self.rename_ends(Err(refusal)),
            Event::NotAsked(why) => {
                if let Some(reply) = self.snapshot.asks_of_log() {
                    self.tell_of_log(Err(why.to_string()), reply);
                }
                self.restore_refused(&why.to_string(), refusal::of_witness(&why));
                self.start_failed(refusal::of_witness(&why));
            }
            Event::Witness { error } => {
                self.event(match &error {
                    Some(reason) => EventKind::WitnessUnreachable { reason: reason.clone() },
                    None => EventKind::WitnessReachable,
                });
                self.witness_trouble = error.map(WitnessTrouble::Silent);
            }
            Event::VmStarted { generation, status, layout, up } => self.vm_started(generation, status, layout, up),
            Event::VmRunning { generation } => {
                if !self.is_here(generation) {
                    return;
                }
                self.show_standing();
                // One that is not wanted any more ends when the VM does.
                if !self.start_cancelled && std::mem::take(&mut self.starting) {
                    let term = self.protocol.term();
                    self.operation_ends(OperationKind::Start, Ok(Some(EventKind::Booted { term })));
                }
                self.guest_runs();
            }
            Event::Stands { generation, standing, epoch } => self.stands(generation, standing, epoch),
            Event::VmLost { generation, reason } => {
                if self.is_here(generation) && !self.trial_lost(&reason) {
                    // Until its owner has been told that it runs it has not lived.
                    self.unborn = self.starting;
                    self.start_failed(Refusal::StartFailed { reason: reason.clone() });
                    self.input(Input::MachineLost { reason });
                    self.unborn = false;
                    // A backup that was told may not be able to go on, or not be allowed to any more. It may hold more than this log, so it is
                    // given the time first.
                    if self.protocol.role() == Role::Standby {
                        self.log_after_loss_in(KEEP);
                    }
                }
            }
            Event::VmShutdown { generation } if generation != self.generation => {}
            Event::VmShutdown { .. } => {
                self.off = true;
                self.stop_when_off();
            }
            Event::Stuck { generation, step, waited } => self.stuck(generation, &step, waited),
            Event::GuestFailed { generation, failure } => self.guest_failed(generation, failure),
            Event::DumpProgress { generation, progress } => self.dump_progress(generation, progress),
            Event::Dumped { generation, outcome } => self.dumped(generation, outcome),
            Event::ImageKept { trial, image, before, reason, failure } => {
                self.image_kept(trial, image, before, reason, failure);
            }
            Event::ImageOnRecord(image) => self.health.committed = image,
            Event::ConsoleShows { text } => self.console_shows(&text),
            Event::SyncProgress { target: Target::Snapshot, progress } => self.snapshot_copied(progress),
            // How far its copy is, a log does not tell.
            Event::SyncProgress { target: Target::Log, .. } => {}
            Event::SyncProgress { target: Target::Session(session), progress } => {
                if let Some(replica) = self.replica(session) {
                    replica.sync = Some(progress);
                }
            }
            // A former life's log and snapshot have the names of the present one's.
            Event::CannotReplicate { generation, .. } | Event::BaseForgotten { generation, .. }
                if !self.is_here(generation) => {}
            Event::CannotReplicate { target: Target::Snapshot, reason, .. } => self.snapshot_failed(reason),
            Event::CannotReplicate { target: Target::Log, reason, .. } => {
                if let Some(id) = self.log.id {
                    self.log_failed(id, reason.into());
                }
            }
            Event::CannotReplicate { target: Target::Session(session), reason, .. }
            | Event::SessionEnded { session, reason } => self.lose_session(session, reason),
            Event::FirstCheckpoint { generation, target, epoch, held } => {
                self.first_checkpoint(generation, target, epoch, held);
            }
            Event::FinalTaken { generation, epoch } => {
                // Nothing may have come of the switchover meanwhile.
                if generation == self.generation && (self.off || self.protocol.hands_over()) {
                    self.final_epoch = Some(epoch);
                    // A guest that has powered off is handed over to nobody.
                    if !self.off {
                        self.input(Input::FinalTaken { epoch });
                    }
                }
            }
            Event::NoPeer { reason } => {
                self.looking = false;
                self.no_peer = Some(match self.why_some_rest() {
                    Some(rests) => format!("{rests}; {reason}"),
                    None => reason,
                });
            }
            Event::PeerConnected { peer } => {
                self.looking = false;
                self.no_peer = None;
                // The one that came before is gone.
                self.peer = Some(peer.clone());
                if self.wants_peer() {
                    self.input(Input::PeerAvailable { peer });
                } else {
                    self.forget_peer();
                }
            }
            Event::Offer { offer, hello } => self.offer(offer, &hello),
            Event::RefusedPeer { peer, reason } => self.event(EventKind::Refused { peer, reason }),
            Event::BaseForgotten { target: Target::Session(session), .. } => self.base_forgotten(session),
            // Neither holds anything before it is copied to.
            Event::BaseForgotten { target: Target::Log | Target::Snapshot, .. } => {}
            Event::Base { session, epoch, changes } => self.base(session, epoch, &changes),
            Event::ConfiguredOtherwise { session, differences } => self.configured_otherwise(session, differences),
            Event::SessionReady { session } => self.session_ready(session),
            Event::SessionTried { session } => {
                let now = self.now.monotonic;
                if let Some(replica) = self.replica(session) {
                    replica.tried.get_or_insert(now);
                }
            }
            Event::VolumesSynced { session, rounds, bytes } => {
                if let Some(replica) = self.replica(session) {
                    replica.volume_bytes = bytes;
                    self.add_target(session, rounds);
                }
            }
            Event::Acked { session, epoch, sent } => {
                self.heard(session, sent);
                self.acked(session, epoch);
            }
            Event::Sent { session, epoch, resumed, record } => self.sent(session, epoch, resumed, record),
            Event::PeerBeat { session, up, echo } => {
                if let Some(replica) = self.replica(session) {
                    replica.uplink = up;
                }
                self.heard(session, echo);
            }
            Event::LogHolds { id, epoch, first, commit_bytes, bytes, commit_us } => {
                let status = LogStatus { state: LogState::On, epoch, commit_bytes, bytes, commit_us };
                self.log_holds(id, epoch, first, status);
            }
            Event::LogBegun { id } => self.log_begun(id),
            Event::Stood { id, ticket } => self.stood(id, ticket),
            Event::LogFailed { id, failure } => self.log_failed(id, failure),
            Event::LogRemoved { id, removed } => self.log_removed(id, removed),
            Event::Recovery { id, news } => self.recovery_news(id, news),
            Event::Job { id, news } => self.job_news(id, news),
            Event::FreezeEnds { generation, unsure } => self.freeze_ends(generation, unsure),
            Event::StandbyReady { session, status, base } => self.backup_ready(session, status, base),
            Event::Differs { session, volume, first, bits } => {
                if self.backup.as_ref().is_some_and(|b| b.session == session) {
                    self.tell_primary(Word::VolumeDiffers { volume, first, bits });
                }
            }
            Event::Tried { session } => {
                if self.backup.as_ref().is_some_and(|b| b.session == session) {
                    self.tell_primary(Word::Tried);
                }
            }
            Event::Held { session, epoch, first } => self.input(Input::CheckpointHeld { session, epoch, first }),
            Event::CannotAcknowledge { session, reason } => self.cannot_acknowledge(session, reason),
            Event::BoundTo { session, term } => {
                if let Some(primary) = self.protocol.primary().cloned() {
                    let backups = vec![Backup { host: self.settings.host.clone(), session }];
                    self.input(Input::BoundNotice { session, record: WitnessRecord { term, primary, backups } });
                }
            }
            Event::Relinquished { session, reason, silence } => self.primary_gone(session, reason, silence, true),
            Event::PrimaryGone { session, reason, silence } => self.primary_gone(session, reason, silence, false),
            Event::StandbyWaits { session } => {
                if self.backup.as_ref().is_some_and(|b| b.session == session) {
                    self.standby_ready();
                }
            }
            Event::Loaded { session, loaded } => {
                let ours = self.backup.as_ref().is_some_and(|b| b.session == session);
                if let (true, Some(takeover)) = (ours, &mut self.takeover) {
                    takeover.loaded = Some((Source::Session(session), loaded));
                    self.standby_ready();
                    self.try_resume();
                }
            }
            Event::LoadFailed { session, reason } => self.load_failed(session, &reason),
            Event::Looked(looked) => self.stall.looked(looked),
            Event::Released { kept, announced, looked } => self.released(kept, announced, looked),
            Event::Gate { open, looked } => {
                self.stall.looked(looked);
                self.gate(open);
            }
            Event::GuestStarted { layout, status } => self.guest_started(layout, status),
            Event::GuestNotStarted { reason } => self.guest_not_started(&reason),
            Event::SnapshotBegun { id, request, outcome } => self.snapshot_begun(id, request, outcome),
        }
    }

    /// Whether it is the present thread of the VM that speaks.
    pub(crate) fn is_here(&self, generation: u64) -> bool {
        self.has_vm && generation == self.generation
    }

    /// SIGTERM has been obeyed: the VM ends with this keeper, whatever is still being synced.
    fn end(&mut self) {
        let over = self.protocol.nobody_may_claim();
        self.stand_down("the keeper was told to end", Refusal::KeeperEnds);
        if over {
            self.disks(DisksOrder::Over);
        }
        self.parking(ParkingOrder::Clear);
        self.drop_parting_log();
    }

    fn vm_started(&mut self, generation: u64, status: MachineStatus, layout: Layout, up: WaiterId) {
        // One that is not wanted any more learns it by not being let go on.
        if !self.is_here(generation) {
            return;
        }
        self.disks(DisksOrder::Used);
        self.machine = Some(status);
        self.booted = Some(self.settings.vm.clone());
        self.layout = Some(layout);
        self.guest_starts();
        self.guest_io(GuestIoOrder::Attach(None));
        // Unless a log of its former life has still to be invalidated.
        if !self.holding {
            self.let_volumes();
            self.open_gate();
        }
        self.effect(Effect::LetGo(up));
    }

    /// Whoever is not let go on is left out.
    fn first_checkpoint(&mut self, generation: u64, target: Target, epoch: Epoch, held: WaiterId) {
        if generation != self.generation {
            return;
        }
        match target {
            Target::Log if self.log.id.is_some() && self.log.state == LogState::Copying => {
                self.log_first(epoch);
                self.effect(Effect::LetGo(held));
            }
            Target::Session(session) => {
                let now = self.now.monotonic;
                if let Some(replica) = self.replica(session) {
                    (replica.first, replica.waited_for) = (Some(epoch), Some(now));
                    self.input(Input::FirstCheckpoint { session, epoch });
                    self.effect(Effect::LetGo(held));
                }
            }
            // Output does not wait for a snapshot.
            Target::Log | Target::Snapshot => {}
        }
    }

    // ---- what the protocol says ----

    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Prepare { id, new } => self.prepare(id, new),
            Action::Propose { id, expected, new } => self.propose(id, expected, new, false),
            Action::AskAgain { id, expected, new } => self.propose(id, expected, new, true),
            Action::Boot => {
                self.drop_restore("the VM is booted", Refusal::RunsHere);
                // One whose start is not wanted any more is ended as soon as the protocol has been heard out.
                if self.start_cancelled {
                    self.stop_due = Some(CANCELLED);
                } else {
                    self.health_boots();
                    self.boot();
                }
            }
            Action::ResumeFrom { epoch } => {
                self.won();
                let now = self.now.monotonic;
                if let Some(takeover) = &mut self.takeover {
                    takeover.won = Some((epoch, micros(now.since(takeover.suspected))));
                }
                self.try_resume();
            }
            Action::Hold => {
                self.holding = true;
                // What is still held waits for the backup with the rest.
                self.stay_shut();
                self.hold_output();
                self.disks(DisksOrder::Hold);
            }
            Action::Release { epoch } => {
                self.release(epoch);
                self.committed = epoch;
                self.commit_disks();
                self.measure_committed();
            }
            Action::OpenGate => {
                self.holding = false;
                self.let_volumes();
                self.open_gate();
            }
            Action::GoOn => {
                if !self.off {
                    self.final_epoch = None;
                }
                self.command(VmOrder::GoOn);
            }
            Action::OpenSession { session, peer } => self.open_session(session, peer),
            Action::CloseSession { session } => self.part_session(session),
            Action::TakeFinalCheckpoint => self.command(VmOrder::TakeFinal),
            Action::SendBound { session, record, first } => self.bound(session, record.term, first),
            Action::SendRelinquish { session, reason } => {
                let epoch = self.committed;
                if self.replica(session).is_some() {
                    self.session(session, SessionOrder::Relinquish { epoch, reason });
                }
            }
            // Both are dealt with where the offer is.
            Action::AcceptSession { .. } | Action::RefuseSession { .. } => {}
            Action::SendAck { session: _, epoch } => {
                self.committed = epoch;
                self.tell_primary(Word::Ack { epoch });
            }
            Action::StandDown => {
                let from_log = matches!(self.loaded(), Some(Source::Log(_)));
                // A VM that was to be started here was not granted, or there is no saying.
                let ungranted = match &self.witness_trouble {
                    Some(trouble @ WitnessTrouble::Doubted(_)) => trouble.refusal(),
                    _ => Refusal::Overtaken,
                };
                self.stand_down("the witness did not grant the VM", ungranted);
                // The log may speak of what the witness holds all the same: it may have been asked by what an old record said.
                if from_log {
                    self.log_after_loss();
                }
                // One that was being stopped may turn out to have stopped, and its log is to go then.
                if self.quitting.is_some() && !self.is_ending() {
                    self.done = true;
                }
            }
            Action::Refuse(refused) => {
                let reason = refused.to_string();
                tracing::warn!(%reason, "refused");
                let refusal = refusal::of_protocol(refused);
                self.restore_refused(&reason, refusal.clone());
                self.start_failed(refusal);
            }
            Action::Emit(event) => self.emit(event),
        }
    }

    fn emit(&mut self, event: EventKind) {
        match event {
            EventKind::Stopped { .. } => {
                self.disks(DisksOrder::Over);
                self.remove_log(event);
            }
            // Of its host's memory. What is in the log is still there, and on the disks.
            EventKind::Lost { reason } => {
                // What a backup has acknowledged may be in its log and not yet in the images.
                if !self.unloaded {
                    self.disks(DisksOrder::Over);
                }
                self.log_after_loss();
                self.event(match self.unborn {
                    true => EventKind::StartFailed { reason },
                    false => EventKind::Lost { reason },
                });
            }
            event => self.event(event),
        }
    }

    /// Ends whatever of the VM is here. Mute first: nothing may leave while the rest is taken down. `unstarted`: why what was being loaded
    /// does not run here, in words and as who has asked for it is told.
    pub(crate) fn stand_down(&mut self, words: &str, unstarted: Refusal) {
        self.give_up_preparing();
        self.ask(WitnessRequest::Cancel);
        self.guest_io(GuestIoOrder::Mute);
        self.disks(DisksOrder::Discard);
        let ended = "the VM has ended here";
        self.drop_snapshot(ended, Refusal::VmEnded { reason: "before the snapshot was taken".into() });
        self.drop_restore(words, unstarted);
        self.keep_log();
        self.part_log();
        self.announcing = None;
        self.announce = false;
        if std::mem::take(&mut self.has_vm) {
            self.effect(Effect::Vm(VmOrder::End { relaunch: false }));
        }
        self.forget_holders();
        self.health_ends();
        // A word of farewell that is still queued goes out: the sender empties its queue before it ends.
        for replica in std::mem::take(&mut self.replicas) {
            self.session(replica.session, SessionOrder::Close(Close::Finish));
        }
        self.primary(PrimaryOrder::Park);
        self.drop_backup();
        self.guest_io(GuestIoOrder::Detach);
        (self.takeover, self.resuming, self.resumed) = (None, None, None);
        self.unloaded = false;
        self.machine = None;
        self.booted = None;
        self.layout = None;
        self.forget_peer();
        self.final_epoch = None;
        self.holding = false;
        self.stay_shut();
        self.off = false;
        self.stop_due = None;
        self.forget_standing();
        self.stall.reset();
        self.uncommitted.clear();
        self.committed = Epoch(0);
        // What somebody waits for does not come any more, and others may want to start the VM after that.
        self.start_failed(Refusal::VmEnded { reason: "before its guest ran".into() });
    }
}
