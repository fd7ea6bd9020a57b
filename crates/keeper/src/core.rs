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

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use ninefold_machine::{Machine, MachineConfig, Ram, accel};
use ninefold_model::control::{Request, Response};
use ninefold_model::event::{EventKind, FailoverPhases};
use ninefold_model::spec::{Accel, AccelChoice, Boot, EpochPolicy, Protection};
use ninefold_model::status::{Counters, MachineStatus, ProtectionState, SyncProgress, VmStatus};
use ninefold_model::{Epoch, Term};
use ninefold_net::announce::AnnouncePlan;
use ninefold_replica::pacing::MAX_IN_FLIGHT;
use ninefold_replica::protocol::{Action, Input, Phase, Protocol};
use ninefold_replica::stream::{Heartbeat, Hello, Layout, Record, write_record};
use ninefold_transport::clock::monotonic_us;
use ninefold_transport::{Link, LinkHandle, LinkWriter};

use crate::arbiter::Question;
use crate::capture::micros;
use crate::config::KeeperConfig;
use crate::connector::Connector;
use crate::error;
use crate::journal::Journal;
use crate::metrics::Board;
use crate::msg::Msg;
use crate::outlets::Outlets;
use crate::priority;
use crate::session::{Job, Session, Settings};
use crate::standby::{self, Loaded};
use crate::vm::{self, Bell, Command, VmHandle};

/// The core looks at its clock at least this often.
const TICK: Duration = Duration::from_millis(10);
/// A host that stood still for less is merely busy.
const MIN_STILL: Duration = Duration::from_millis(50);
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

/// What the core is started with.
pub struct Parts {
    pub config: Arc<KeeperConfig>,
    pub outlets: Arc<Outlets>,
    pub journal: Journal,
    pub board: Arc<Board>,
    pub bell: Bell,
    pub inbox: Receiver<Msg>,
    pub core: Sender<Msg>,
    pub arbiter: Sender<Question>,
    pub connector: Connector,
}

/// See the [module](self).
pub struct Core {
    parts: Parts,
    protocol: Protocol,
    epochs: EpochPolicy,
    witness_error: Option<String>,
    vm: Option<VmHandle>,
    /// Counts the VM's threads, so that a late word of an earlier one is not taken for the present one's.
    generation: u64,
    machine: Option<MachineStatus>,
    layout: Option<Layout>,
    /// The connector is at work.
    looking: bool,
    /// When the last session failed before it protected, and how long to wait after that.
    retry: Option<(Instant, Duration)>,
    /// A peer that waits for its session to be opened.
    link: Option<Link>,
    session: Option<Session>,
    sync: Option<SyncProgress>,
    sync_began: Instant,
    session_ready: bool,
    final_epoch: Option<Epoch>,
    committed: Epoch,
    /// Of the running session's checkpoints: number, when the guest ran again, what was measured.
    unacked: Vec<(Epoch, Instant, ninefold_model::control::CheckpointRecord)>,
    peer_uplink: bool,
    uplink: Arc<AtomicBool>,
    uplink_lost: Option<Instant>,
    backup: Option<BackupSide>,
    takeover: Option<Takeover>,
    announcing: Option<(Instant, AnnouncePlan)>,
    /// An announcement is due and has not been sent.
    announce: bool,
    start_reply: Option<Sender<Response>>,
    quitting: Option<Instant>,
    counters: Counters,
    last_tick: Instant,
    last_beat: Instant,
    beats: u64,
    done: bool,
}

/// A session in which this host is the backup.
struct BackupSide {
    session: Term,
    writer: LinkWriter,
    handle: LinkHandle,
    scratch: Vec<u8>,
    /// When its QEMU was there. Before, nobody reads what the primary says, and its silence means nothing.
    ready: Option<Instant>,
    gone: bool,
}

/// A takeover in progress: it needs the witness's word and the loaded standby, in whichever order they come.
struct Takeover {
    suspected: Instant,
    detect_us: u64,
    won: Option<(Epoch, u64)>,
    loaded: Option<Box<Loaded>>,
}

impl Core {
    pub fn new(parts: Parts) -> Self {
        let protocol = Protocol::new(parts.config.host.clone(), parts.config.vm.protection);
        let now = Instant::now();
        Self {
            protocol,
            epochs: parts.config.epochs,
            witness_error: None,
            vm: None,
            generation: 0,
            machine: None,
            layout: None,
            looking: false,
            retry: None,
            link: None,
            session: None,
            sync: None,
            sync_began: now,
            session_ready: false,
            final_epoch: None,
            committed: Epoch(0),
            unacked: Vec::new(),
            peer_uplink: false,
            uplink: Arc::new(AtomicBool::new(true)),
            uplink_lost: None,
            backup: None,
            takeover: None,
            announcing: None,
            announce: false,
            start_reply: None,
            quitting: None,
            counters: Counters::default(),
            last_tick: now,
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
        self.stand_down();
    }

    fn failure_timeout(&self) -> Duration {
        Duration::from_millis(self.parts.config.timing.failure_timeout_ms.into())
    }

    fn event(&self, kind: EventKind) {
        self.parts.journal.event(kind);
    }

    fn input(&mut self, input: Input) {
        let mut actions = Vec::new();
        self.protocol.handle(input, &mut actions);
        for action in actions {
            self.act(action);
        }
        self.parts.board.role(self.protocol.role(), self.protocol.protection(), self.protocol.term());
    }

    // ---- time ----

    fn tick(&mut self) {
        let stood_still = self.last_tick.elapsed();
        self.last_tick = Instant::now();
        // The peer counts from our last sign of life, which was up to a heartbeat before.
        let heartbeats = 2 * Duration::from_millis(self.parts.config.timing.heartbeat_ms.into());
        if stood_still >= self.failure_timeout().saturating_sub(heartbeats).max(MIN_STILL) {
            self.stood_still(stood_still);
        }
        self.check_peer();
        self.check_uplink();
        if let Some((since, plan)) = &mut self.announcing {
            self.announce |= plan.due(since.elapsed());
            if plan.next().is_none() {
                self.announcing = None;
            }
        }
        self.announce_alone();
        let waited = self.retry.is_none_or(|(failed, pause)| failed.elapsed() >= pause);
        if self.protocol.wants_peer() && self.layout.is_some() && !self.looking && waited {
            self.looking = true;
            self.parts.connector.ask();
        }
        if let Some(since) = self.quitting
            && since.elapsed() > QUIT_LIMIT
        {
            self.done = true;
        }
        self.counters.frames_held = 0;
        let mut counters =
            Counters { frames_out: 0, frames_in: 0, frames_dropped: 0, frames_stale: 0, ..self.counters };
        self.parts.outlets.count(&mut counters);
        self.counters = counters;
        self.parts.board.counters(&counters, self.committed);
    }

    /// This host was frozen, or starved, for longer than its peers wait. As a primary it must assume that it has been
    /// replaced: it gives its session up before it looks at anything that arrived meanwhile. As a backup it must not
    /// take its own deafness for the primary's silence.
    fn stood_still(&mut self, time: Duration) {
        let reason = format!("this host stood still for {} ms", time.as_millis());
        tracing::warn!(%reason);
        if let Some(session) = &self.session {
            let session = session.name;
            self.close_session();
            self.input(Input::SessionLost { session, reason });
        }
        if let Some(BackupSide { ready: Some(ready), .. }) = &mut self.backup {
            // What the primary said meanwhile has still to be read: its silence counts from now.
            *ready = Instant::now();
        }
    }

    /// An announcement is output like any other: while a backup may take over, only its acknowledgement shows that it
    /// has not. So a bound primary announces with what it releases (`Action::Release`), and one that waits for the
    /// witness not at all.
    fn announce_alone(&mut self) {
        let alone =
            matches!(self.protocol.phase(), Some(Phase::Alone | Phase::Renewing { .. } | Phase::Syncing { .. }));
        if alone && std::mem::take(&mut self.announce) {
            self.parts.outlets.announce(&|| true);
        }
    }

    fn check_peer(&mut self) {
        let limit = self.failure_timeout();
        if let Some(session) = &self.session {
            let silence = session.handle.silence();
            let name = session.name;
            // A backup that starts its QEMU answers with heartbeats already; one that is not ready in time is lost too.
            if silence > limit {
                self.close_session();
                let reason = format!("the backup was silent for {} ms", silence.as_millis());
                self.input(Input::SessionLost { session: name, reason });
            } else if self.unacked.iter().any(|(_, sent, _)| sent.elapsed() > ACK_LIMIT) {
                self.close_session();
                let reason = "the backup does not acknowledge".into();
                self.input(Input::SessionLost { session: name, reason });
            } else if !self.session_ready && self.sync_began.elapsed() > READY_LIMIT {
                self.close_session();
                self.input(Input::SessionLost { session: name, reason: "the backup does not get ready".into() });
            }
        }
        let heartbeat = Duration::from_millis(self.parts.config.timing.heartbeat_ms.into());
        let uplink = self.uplink.load(Ordering::Relaxed);
        let beat_due = self.last_beat.elapsed() >= heartbeat;
        let Some(backup) = &mut self.backup else { return };
        if beat_due && !backup.gone {
            self.last_beat = Instant::now();
            self.beats += 1;
            let beat = Heartbeat { session: backup.session.0, seq: self.beats, uplink, time_us: monotonic_us() };
            // An error shows as the end of the stream.
            let _ = write_record(&mut backup.writer, &mut backup.scratch, &Record::Heartbeat(beat));
            let _ = std::io::Write::flush(&mut backup.writer);
        }
        let Some(ready) = backup.ready else { return };
        let silence = backup.handle.silence().min(ready.elapsed());
        if !backup.gone && silence > limit {
            let session = backup.session;
            self.primary_gone(session, format!("the primary was silent for {} ms", silence.as_millis()), false);
        }
    }

    fn check_uplink(&mut self) {
        let Some(name) = &self.parts.config.uplink else { return };
        let up = ninefold_net::uplink_running(name).unwrap_or(true);
        self.uplink.store(up, Ordering::Relaxed);
        if up {
            self.uplink_lost = None;
            return;
        }
        let since = *self.uplink_lost.get_or_insert_with(Instant::now);
        let hold = Duration::from_millis(self.parts.config.timing.uplink_hold_ms.into());
        let bound = self.protocol.protection() == Some(ProtectionState::Protected);
        if bound
            && self.witness_error.is_none()
            && self.peer_uplink
            && since.elapsed() >= hold
            && self.final_epoch.is_none()
        {
            // Once an attempt: a failed one starts the hold anew.
            self.uplink_lost = Some(Instant::now() + hold);
            let reason = format!("{name} has no carrier");
            self.input(Input::Switchover { reason });
        }
    }

    // ---- messages ----

    fn take(&mut self, msg: Msg) {
        match msg {
            Msg::Request { request, reply } => self.request(request, reply),
            Msg::Quit => self.quit(),
            Msg::WitnessAnswer { id, outcome } => self.input(Input::Answer { id, outcome }),
            Msg::WitnessHolds(record) => self.input(Input::Observed(record)),
            Msg::StartFrom { found, force } => self.input(Input::Start { found, force }),
            Msg::StartFailed(reason) => self.start_failed(reason),
            Msg::Witness { error } => {
                self.event(match &error {
                    Some(reason) => EventKind::WitnessUnreachable { reason: reason.clone() },
                    None => EventKind::WitnessReachable,
                });
                self.witness_error = error;
            }
            Msg::VmStarted { generation, status, layout, ports, up } => {
                if generation != self.generation {
                    return;
                }
                self.machine = Some(status);
                self.layout = Some(layout);
                if let Err(error) = self.parts.outlets.attach(ports) {
                    tracing::error!(%error, "the VM's sockets cannot be served");
                }
                self.parts.outlets.pass();
                let _ = up.send(());
            }
            Msg::VmRunning => {
                if let Some(machine) = &mut self.machine {
                    machine.run_state = "running".into();
                }
                if let Some(reply) = self.start_reply.take() {
                    let _ = reply.send(Response::Done);
                }
            }
            Msg::VmLost { generation, reason } => {
                if self.vm.is_some() && generation == self.generation {
                    self.start_failed(reason.clone());
                    self.input(Input::MachineLost { reason });
                }
            }
            Msg::VmShutdown { generation } if generation != self.generation => {}
            Msg::VmShutdown { .. } => self.input(Input::Stop { reason: "the guest shut down".into() }),
            Msg::SyncProgress(progress) => self.sync = Some(progress),
            Msg::FirstCheckpoint { session, held } => {
                self.input(Input::FirstCheckpoint { session });
                let _ = held.send(());
            }
            Msg::FinalTaken { session, epoch } => {
                if self.session.as_ref().is_some_and(|s| s.name == session) {
                    self.final_epoch = Some(epoch);
                    self.check_final(session);
                }
            }
            Msg::CannotReplicate { session, reason } | Msg::SessionEnded { session, reason } => {
                if self.session.as_ref().is_some_and(|s| s.name == session) {
                    self.close_session();
                    self.input(Input::SessionLost { session, reason });
                }
            }
            Msg::NoPeer => self.looking = false,
            Msg::PeerConnected { link } => {
                self.looking = false;
                if self.protocol.wants_peer() && self.layout.is_some() {
                    let peer = link.peer().clone();
                    self.link = Some(link);
                    self.input(Input::PeerAvailable { peer });
                }
            }
            Msg::Offer { hello, writer, handle, go } => self.offer(&hello, writer, handle, &go),
            Msg::RefusedPeer { peer, reason } => self.event(EventKind::Refused { peer, reason }),
            Msg::SessionReady { session } => {
                if let (Some(s), Some(vm)) = (&self.session, &self.vm)
                    && s.name == session
                    && !self.session_ready
                {
                    self.session_ready = true;
                    vm.send(Command::StartSync { session, jobs: s.jobs.clone() });
                }
            }
            Msg::Acked { session, epoch } => self.acked(session, epoch),
            Msg::Sent { session, capture } => {
                if self.session.as_ref().is_some_and(|s| s.name == session) {
                    self.counters.checkpoints += 1;
                    self.counters.pages_sent += capture.record.dirty_pages;
                    self.counters.bytes_sent += capture.record.wire_bytes;
                    if capture.epoch > self.committed {
                        self.unacked.push((capture.epoch, capture.resumed, capture.record));
                    } else {
                        // The acknowledgement overtook this message.
                        self.measured(capture.record, capture.resumed);
                    }
                    self.command(Command::Recycle(capture));
                }
            }
            Msg::PeerUplink { session, up } => {
                if self.session.as_ref().is_some_and(|s| s.name == session) {
                    self.peer_uplink = up;
                }
            }
            Msg::StandbyReady { session, status } => {
                if let Some(backup) = self.backup.as_mut().filter(|b| b.session == session) {
                    backup.ready = Some(Instant::now());
                    self.machine = Some(status);
                    let ready = Record::Ready { session: session.0, what: ninefold_replica::stream::Ready::Receive };
                    self.tell_primary(&ready);
                }
            }
            Msg::Held { session, epoch } => self.input(Input::CheckpointHeld { session, epoch }),
            Msg::Synced { .. } => {}
            Msg::BoundTo { session } => self.input(Input::BoundNotice { session }),
            Msg::Relinquished { session, reason } => self.primary_gone(session, reason, true),
            Msg::PrimaryGone { session, reason } => self.primary_gone(session, reason, false),
            Msg::Loaded { session, loaded } => {
                let ours = self.backup.as_ref().is_some_and(|b| b.session == session);
                if let (true, Some(takeover)) = (ours, &mut self.takeover) {
                    takeover.loaded = Some(loaded);
                    self.try_resume();
                }
            }
            Msg::LoadFailed { session, reason } => self.load_failed(session, &reason),
        }
    }

    fn request(&mut self, request: Request, reply: Sender<Response>) {
        let refuse = |message: &str| Response::Error { message: message.into(), help: None, try_host: None };
        let answer = match request {
            Request::Status => Response::Status { status: Box::new(self.status()) },
            Request::Start { force } => {
                if self.start_reply.is_some() {
                    refuse("the VM is being started")
                } else {
                    self.start_reply = Some(reply);
                    let _ = self.parts.arbiter.send(Question::Start { force });
                    return;
                }
            }
            Request::Stop | Request::Switchover | Request::Reset if self.vm.is_none() => Response::Error {
                message: format!("{} does not run on {}", self.parts.config.vm.name, self.parts.config.host),
                help: Some("`ninefold vm status` shows where it runs".into()),
                try_host: self.protocol.peer().cloned(),
            },
            Request::Stop => {
                self.input(Input::Stop { reason: "stopped by its owner".into() });
                Response::Done
            }
            Request::Reset => {
                self.command(Command::Reset);
                Response::Done
            }
            Request::Protect => {
                self.input(Input::Want(Protection::FaultTolerant));
                Response::Done
            }
            Request::Unprotect => {
                self.input(Input::Want(Protection::None));
                Response::Done
            }
            Request::Switchover if self.witness_error.is_some() => Response::Error {
                message: "the witness does not answer: the guest would stand still until it does".into(),
                help: Some("see to the witness first; `ninefold vm status` shows when it answers again".into()),
                try_host: None,
            },
            Request::Switchover => {
                let mut actions = Vec::new();
                self.protocol.handle(Input::Switchover { reason: "asked for".into() }, &mut actions);
                let refused = actions.iter().find_map(|a| match a {
                    Action::Refuse { reason } => Some(refuse(reason)),
                    _ => None,
                });
                for action in actions {
                    self.act(action);
                }
                refused.unwrap_or(Response::Done)
            }
            Request::SetEpochs { policy } => {
                self.epochs = policy;
                self.command(Command::Policy(policy));
                Response::Done
            }
            // Answered where the histories are, without troubling the core.
            Request::Events { .. } | Request::Checkpoints { .. } => refuse("not for the core"),
        };
        let _ = reply.send(answer);
    }

    fn status(&mut self) -> VmStatus {
        let config = &self.parts.config;
        VmStatus {
            vm: config.vm.name.clone(),
            host: config.host.clone(),
            pid: std::process::id(),
            role: self.protocol.role(),
            protection: self.protocol.protection(),
            wanted: self.protocol.wanted(),
            term: self.protocol.term(),
            committed: self.committed,
            peer: self.protocol.peer().cloned(),
            epoch_policy: self.epochs,
            witness_reachable: self.witness_error.is_none(),
            sync: self.sync.filter(|_| self.session.is_some()),
            machine: self.machine.clone(),
            counters: self.counters,
            pause_us: self.parts.journal.pauses(),
        }
    }

    fn start_failed(&mut self, reason: String) {
        if let Some(reply) = self.start_reply.take() {
            let help = Some("`ninefold vm status` and `ninefold doctor` show more".into());
            let _ = reply.send(Response::Error { message: reason, help, try_host: None });
        }
    }

    fn quit(&mut self) {
        self.quitting = Some(Instant::now());
        let bound = self.protocol.protection() == Some(ProtectionState::Protected);
        // Without the witness nobody can take it: the guest would only stand still until the end.
        if bound && self.witness_error.is_none() {
            self.input(Input::Switchover { reason: "the keeper was told to end".into() });
        } else {
            self.done = true;
        }
    }

    fn acked(&mut self, session: Term, epoch: Epoch) {
        if self.session.as_ref().is_none_or(|s| s.name != session) || epoch <= self.committed {
            return;
        }
        // As many as can be unacknowledged: the pacer's, and a switchover's last.
        if epoch.0 > self.committed.0 + u64::from(MAX_IN_FLIGHT) + 1 {
            self.close_session();
            let reason = format!("the backup acknowledges epoch {epoch} after {}", self.committed);
            self.input(Input::SessionLost { session, reason });
            return;
        }
        self.input(Input::Acked { session, epoch });
        self.committed = epoch;
        self.command(Command::Acked(epoch));
        let mut i = 0;
        while let Some(&(e, resumed, record)) = self.unacked.get(i) {
            if e <= epoch {
                self.unacked.swap_remove(i);
                self.measured(record, resumed);
            } else {
                i += 1;
            }
        }
        self.check_final(session);
    }

    fn measured(&mut self, mut record: ninefold_model::control::CheckpointRecord, resumed: Instant) {
        record.commit_us = micros(resumed.elapsed());
        self.parts.board.checkpoint(&record);
        self.parts.journal.checkpoint(record);
    }

    fn check_final(&mut self, session: Term) {
        if self.final_epoch.is_some_and(|e| e <= self.committed) {
            self.input(Input::FinalAcked { session });
        }
    }

    // ---- the backup's side ----

    fn offer(&mut self, hello: &Hello, writer: LinkWriter, handle: LinkHandle, go: &std::sync::mpsc::SyncSender<bool>) {
        let mut actions = Vec::new();
        self.protocol.handle(Input::Offer { from: hello.from.clone(), session: hello.term }, &mut actions);
        let mut writer = writer;
        for action in actions {
            match action {
                Action::AcceptSession { session } => {
                    self.drop_backup();
                    self.parts.outlets.forget();
                    self.committed = Epoch(0);
                    self.epochs = hello.epoch_policy;
                    // What the owner wants of the VM travels with it.
                    self.input(Input::Want(hello.spec.protection));
                    self.backup =
                        Some(BackupSide { session, writer, handle, scratch: Vec::new(), ready: None, gone: false });
                    let _ = go.send(true);
                    return;
                }
                Action::RefuseSession { reason, .. } => {
                    standby::refuse(&mut writer, &reason);
                    let peer = hello.from.to_string();
                    self.event(EventKind::Refused { peer, reason });
                }
                other => self.act(other),
            }
        }
        let _ = go.send(false);
    }

    fn tell_primary(&mut self, record: &Record<'_>) {
        if let Some(backup) = &mut self.backup {
            // An error shows as the end of the stream.
            let _ = write_record(&mut backup.writer, &mut backup.scratch, record);
            let _ = std::io::Write::flush(&mut backup.writer);
        }
    }

    fn primary_gone(&mut self, session: Term, reason: String, relinquished: bool) {
        let Some(backup) = &mut self.backup else { return };
        if backup.session != session || backup.gone {
            return;
        }
        backup.gone = true;
        let detect_us = micros(backup.handle.silence());
        if !relinquished {
            // The receiver's thread ends its stream and loads what it holds. A primary that said farewell keeps its
            // connection until this host has the VM or knows that it will not.
            backup.handle.shutdown();
        }
        self.takeover = Some(Takeover { suspected: Instant::now(), detect_us, won: None, loaded: None });
        self.input(Input::PrimaryLost { session, reason });
    }

    fn load_failed(&mut self, session: Term, reason: &str) {
        if self.backup.as_ref().is_none_or(|b| b.session != session) {
            return;
        }
        tracing::error!(%reason, "no standby");
        let refusal = reason.to_owned();
        if let Some(backup) = &mut self.backup {
            standby::refuse(&mut backup.writer, &refusal);
        }
        self.event(EventKind::Refused { peer: format!("session {session}"), reason: refusal.clone() });
        if self.takeover.is_some() {
            self.event(EventKind::Lost { reason: format!("the checkpoint cannot be loaded: {refusal}") });
        }
        // Without a standby there is nothing to claim the VM with, whatever checkpoint is held: the primary goes on.
        self.reset_protocol();
    }

    /// Forgets everything: a fresh standby.
    fn reset_protocol(&mut self) {
        self.stand_down();
        self.protocol.abandon();
    }

    fn try_resume(&mut self) {
        let Some(Takeover { won: Some((epoch, arbitrate_us)), loaded: Some(_), detect_us, .. }) = self.takeover else {
            return;
        };
        let Some(Takeover { loaded: Some(loaded), .. }) = self.takeover.take() else { return };
        // The checkpoint that was held when the claim began, or a whole one that came right after it.
        let Loaded { mut machine, ports, epoch: held, load_us } = *loaded;
        let epoch = held.max(epoch);
        let began = Instant::now();
        let started = machine.start();
        if let Err(error) = started.and_then(|()| {
            standby::layout(&machine)
                .map(|l| self.layout = Some(l))
                .map_err(|reason| ninefold_machine::MachineError::Layout { reason })
        }) {
            let reason = error::report(&error);
            self.event(EventKind::Lost { reason: format!("the standby does not run: {reason}") });
            self.reset_protocol();
            return;
        }
        let phases = FailoverPhases { detect_us, arbitrate_us, load_us, resume_us: micros(began.elapsed()) };
        self.machine = Some(standby::status(&machine, "as before the failover", "running"));
        // Open first: a console has no second chance for what it says at once.
        self.parts.outlets.pass();
        if let Err(error) = self.parts.outlets.attach(ports) {
            tracing::error!(%error, "the VM's sockets cannot be served");
        }
        self.parts.outlets.announce(&|| true);
        self.announcing = Some((Instant::now(), AnnouncePlan::new()));
        self.counters.failovers += 1;
        let obtain = Box::new(move || Ok(machine));
        self.start_vm(obtain);
        self.drop_backup();
        let term = self.protocol.term();
        self.event(EventKind::TookOver { term, epoch, phases });
        self.parts.board.failover(&phases);
    }

    fn drop_backup(&mut self) {
        if let Some(backup) = self.backup.take() {
            backup.handle.shutdown();
        }
    }

    // ---- the primary's side ----

    fn start_vm(&mut self, obtain: vm::Obtain) {
        self.generation += 1;
        let started = vm::start(
            self.generation,
            obtain,
            Arc::clone(&self.parts.outlets),
            self.parts.bell.clone(),
            self.epochs,
            self.parts.core.clone(),
        );
        match started {
            Ok(handle) => self.vm = Some(handle),
            Err(error) => tracing::error!(%error, "the VM has no thread"),
        }
    }

    fn boot(&mut self) {
        let config = Arc::clone(&self.parts.config);
        let core = self.parts.core.clone();
        let generation = self.generation + 1;
        self.start_vm(Box::new(move || {
            let (machine, ports, reason) = launch(&config)?;
            let layout = standby::layout(&machine)?;
            let status = standby::status(&machine, &reason, "prelaunch");
            let (up, attached) = std::sync::mpsc::sync_channel(1);
            let _ = core.send(Msg::VmStarted { generation, status, layout, ports, up });
            // Its first frames must find the gate open.
            let _ = attached.recv_timeout(Duration::from_secs(5));
            Ok(machine)
        }));
    }

    fn open_session(&mut self, session: Term) {
        let (Some(link), Some(layout), Some(machine)) = (self.link.take(), self.layout.clone(), &self.machine) else {
            self.input(Input::SessionLost { session, reason: "the peer is gone".into() });
            return;
        };
        let config = &self.parts.config;
        let mut spec = config.vm.clone();
        spec.protection = self.protocol.wanted();
        let hello = Hello {
            session: session.0,
            vm: config.vm.name.clone(),
            from: config.host.clone(),
            term: session,
            spec,
            epoch_policy: self.epochs,
            qemu: machine.qemu.clone(),
            accel: machine.accel,
            layout,
            lanes: 1,
        };
        let settings = Settings {
            heartbeat: Duration::from_millis(config.timing.heartbeat_ms.into()),
            uplink: Arc::clone(&self.uplink),
        };
        self.sync = None;
        self.sync_began = Instant::now();
        self.session_ready = false;
        self.final_epoch = None;
        self.committed = Epoch(0);
        self.unacked.clear();
        self.peer_uplink = false;
        match crate::session::open(link, hello, settings, self.parts.core.clone()) {
            Ok(opened) => self.session = Some(opened),
            Err(error) => {
                let reason = error::report(&error);
                self.input(Input::SessionLost { session, reason });
            }
        }
    }

    fn close_session(&mut self) {
        if self.session.is_some() && self.protocol.protection() == Some(ProtectionState::Syncing) {
            let pause = self.retry.map_or(RETRY_FIRST, |(_, pause)| (pause * 2).min(RETRY_LAST));
            self.retry = Some((Instant::now(), pause));
        }
        self.session = None;
        self.sync = None;
        // A guest that a switchover has paused stays paused until the witness has spoken: `OpenGate` sends `GoOn`.
        if self.final_epoch.is_none() {
            self.command(Command::EndSession);
        }
    }

    fn command(&self, command: Command) {
        if let Some(vm) = &self.vm {
            vm.send(command);
        }
    }

    // ---- what the protocol says ----

    fn act(&mut self, action: Action) {
        match action {
            Action::Propose { id, expected, new } => {
                let _ = self.parts.arbiter.send(Question::Propose { id, expected, new });
            }
            Action::Boot => self.boot(),
            Action::ResumeFrom { epoch } => {
                if let Some(takeover) = &mut self.takeover {
                    takeover.won = Some((epoch, micros(takeover.suspected.elapsed())));
                }
                self.try_resume();
            }
            Action::Hold => self.parts.outlets.hold(),
            Action::Release { epoch } => {
                // A host that freezes in the middle of this must not go on with it when it thaws.
                let limit = self.failure_timeout() / 2;
                let begun = Cell::new(self.last_tick);
                let ours = || {
                    let in_time = begun.get().elapsed() < limit;
                    if in_time {
                        begun.set(Instant::now());
                    }
                    in_time
                };
                self.parts.outlets.release(epoch, &ours);
                if std::mem::take(&mut self.announce) {
                    self.parts.outlets.announce(&ours);
                }
                // A long release is work, not a freeze.
                if ours() {
                    self.last_tick = Instant::now();
                }
            }
            Action::OpenGate => {
                self.parts.outlets.pass();
                self.final_epoch = None;
                self.command(Command::GoOn);
            }
            Action::OpenSession { session, .. } => self.open_session(session),
            Action::CloseSession { .. } => self.close_session(),
            Action::TakeFinalCheckpoint { .. } => self.command(Command::TakeFinal),
            Action::SendBound { session } => {
                self.retry = None;
                let term = session.next();
                if let Some(s) = &self.session {
                    let _ = s.jobs.try_send(Job::Bound { term });
                    let bytes = self.sync.map_or(0, |p| p.bytes_sent);
                    let sync_ms = u64::try_from(self.sync_began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    if let Some(backup) = self.protocol.peer().cloned() {
                        self.event(EventKind::Protected { term, backup, sync_ms, bytes });
                    }
                }
            }
            Action::SendRelinquish { reason, .. } => {
                if let Some(s) = &self.session {
                    let _ = s.jobs.try_send(Job::Relinquish { epoch: self.committed, reason });
                }
            }
            // Both are dealt with where the offer is.
            Action::AcceptSession { .. } | Action::RefuseSession { .. } => {}
            Action::SendAck { session, epoch } => {
                use ninefold_replica::stream::{Pass, PassKind};
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
                self.start_failed(reason);
            }
            Action::Emit(event) => self.event(event),
        }
    }

    /// Ends whatever of the VM is here. Mute first: nothing may leave while the rest is taken down.
    fn stand_down(&mut self) {
        let _ = self.parts.arbiter.send(Question::Cancel);
        self.parts.outlets.mute();
        self.announcing = None;
        self.announce = false;
        self.vm = None;
        // A word of farewell that is still queued goes out: the sender empties its queue before it ends.
        if let Some(session) = self.session.take() {
            session.finish();
        }
        self.drop_backup();
        self.parts.outlets.detach();
        self.takeover = None;
        self.machine = None;
        self.layout = None;
        self.link = None;
        self.sync = None;
        self.final_epoch = None;
        self.unacked.clear();
        self.committed = Epoch(0);
    }
}

/// Boots the VM's QEMU, with the accelerator that works here; says why that one.
fn launch(config: &KeeperConfig) -> Result<(Machine, ninefold_machine::Ports, String), String> {
    let (accel, reason) = match (config.vm.accel, &config.vm.boot) {
        (AccelChoice::Kvm, _) => (Accel::Kvm, "asked for".to_owned()),
        (AccelChoice::Tcg, _) => (Accel::Tcg, "asked for".to_owned()),
        (AccelChoice::Auto, Boot::Linux { kernel, .. }) => {
            let report = accel::probe(kernel, &config.qemu, &config.cache_dir).map_err(|e| error::report(&e))?;
            (report.accel, report.reason)
        }
        (AccelChoice::Auto, Boot::BootSector { .. }) => {
            (Accel::Tcg, "there is no kernel to probe KVM with; ask for kvm if it works here".to_owned())
        }
    };
    let ram = config
        .vm
        .memory_mib
        .checked_mul(1 << 20)
        .ok_or_else(|| "the VM's memory has an absurd size".to_owned())
        .and_then(|bytes| Ram::create(bytes).map_err(|e| error::report(&e)))?;
    let machine = MachineConfig {
        qemu: config.qemu.clone(),
        spec: config.vm.clone(),
        accel,
        incoming: false,
        extra_args: Vec::new(),
    };
    let (machine, ports) = Machine::launch(&machine, Arc::new(ram)).map_err(|e| error::report(&e))?;
    Ok((machine, ports, reason))
}
