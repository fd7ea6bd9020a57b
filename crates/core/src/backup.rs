//! The backup's side: an offered session, a lost primary, the takeover.

use std::time::Duration;

use ninefold_control::{OperationKind, Refusal};
use ninefold_model::Record as WitnessRecord;
use ninefold_model::event::{EventKind, FailoverPhases};
use ninefold_model::health::Health;
use ninefold_model::health::Watchdog;
use ninefold_model::spec::VmSpec;
use ninefold_model::status::{MachineStatus, Role};
use ninefold_model::{Activity, Epoch, HostName, SnapshotName, Term};
use ninefold_replica::continuation::{Base, History};
use ninefold_replica::protocol::{Action, Input};
use ninefold_replica::stream::{Hello, Layout};
use ninefold_replica::target::Basis;

use crate::announce::AnnouncePlan;
use crate::core::Core;
use crate::effect::{
    DisksOrder, Effect, GuestIoOrder, LogOrder, Metric, ParkingOrder, PrimaryOrder, VmOrder, WitnessRequest, Word,
};
use crate::event::{Loaded, OfferId, Source};
use crate::former_backups::{FormerBackups, KEEP};
use crate::policy;
use crate::time::{Boottime, Monotonic, micros};

/// How often a spare asks what the witness holds.
const SPARE_LOOK: Duration = Duration::from_millis(100);
/// How long a spare waits for a witness that answers and cannot be believed: a person may bring its register back meanwhile. If that does not come
/// back, nothing else ends the spare, but for who starts the VM with force.
const DOUBT_LIMIT: Duration = Duration::from_secs(3600);

/// A backup that has lost its claim, and might be given the VM.
pub(crate) struct SpareSide {
    /// Since when the witness could have shown that.
    since: Monotonic,
    /// Since when it answers, and cannot be believed.
    doubted: Option<Monotonic>,
    looked: Monotonic,
}

/// What a spare has of its witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Witness {
    /// It shows what it holds.
    Good,
    /// It does not answer: nobody can give anything back.
    None,
    /// It answers, and cannot be believed.
    Doubted,
}

impl SpareSide {
    fn begin(now: Monotonic) -> Self {
        Self { since: now, doubted: None, looked: now }
    }

    /// Whether the VM is not waited for any longer.
    fn is_over(&mut self, word: Witness, now: Monotonic) -> bool {
        match word {
            Witness::Good => self.doubted = None,
            Witness::None => self.since = now,
            Witness::Doubted => {
                let begun = *self.doubted.get_or_insert(now);
                if now.since(begun) <= DOUBT_LIMIT {
                    self.since = now;
                }
            }
        }
        now.since(self.since) > KEEP
    }
}

/// A session in which this host is the backup.
pub(crate) struct BackupSide {
    pub(crate) session: Term,
    /// When its QEMU was there. Before, nobody reads what the primary says, and its silence means nothing.
    pub(crate) ready: Option<Boottime>,
    pub(crate) gone: bool,
    /// Since when its checkpoints cannot be acknowledged, and why: a primary that is there is told so.
    refuses: Option<(Boottime, String)>,
    /// The VM as it was booted: the standby has the same devices.
    pub(crate) spec: VmSpec,
    pub(crate) primary: HostName,
}

/// A takeover in progress: it needs the witness's word and the loaded standby. The witness is asked when the standby is ready.
pub(crate) struct Takeover {
    pub(crate) suspected: Monotonic,
    pub(crate) detect_us: u64,
    pub(crate) won: Option<(Epoch, u64)>,
    pub(crate) loaded: Option<(Source, Box<Loaded>)>,
    /// The last checkpoint is in the standby's memory, whole.
    pub(crate) ready: bool,
    pub(crate) origin: Origin,
}

impl Takeover {
    /// The QEMU that waits for it.
    pub(crate) fn source(&self) -> Option<Source> {
        self.loaded.as_ref().map(|(source, _)| *source)
    }
}

/// Where a checkpoint that is resumed from has come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Primary,
    Log,
    Snapshot { name: SnapshotName },
}

/// A loaded QEMU whose guest is being started.
pub(crate) struct Resuming {
    pub(crate) source: Source,
    origin: Origin,
    suspected: Monotonic,
    detect_us: u64,
    arbitrate_us: u64,
    load_us: u64,
    /// When the start began.
    began: Monotonic,
    epoch: Epoch,
    term: Term,
    health: Health,
    watchdog: Option<Watchdog>,
    /// The log that goes on with it.
    log: Option<u64>,
    /// What others hold that did not take over.
    history: Option<History>,
    tracked: bool,
}

/// Its guest runs. With the figures of the failover.
pub(crate) struct Resumed {
    pub(crate) source: Source,
    resuming: Resuming,
    phases: FailoverPhases,
    took: Duration,
}

impl Core {
    pub(crate) fn offer(&mut self, offer: OfferId, hello: &Hello) {
        let mut actions = Vec::new();
        self.protocol.handle(Input::Offer { from: hello.from.clone(), session: hello.term }, &mut actions);
        for action in actions {
            match action {
                Action::AcceptSession { session } => return self.accept(offer, session, hello),
                Action::RefuseSession { reason, .. } => {
                    let peer = hello.from.to_string();
                    self.effect(Effect::RefuseOffer { offer, reason: reason.clone() });
                    self.event(EventKind::Refused { peer, reason });
                }
                other => self.act(other),
            }
        }
    }

    fn accept(&mut self, offer: OfferId, session: Term, hello: &Hello) {
        self.parking(ParkingOrder::Announce(session));
        self.primary(PrimaryOrder::Park);
        self.keep_log();
        self.drop_backup();
        self.guest_io(GuestIoOrder::ForgetConsole);
        self.committed = Epoch(0);
        self.epochs = hello.epoch_policy;
        // What the owner wants of the VM travels with it.
        self.want(hello.spec.policy.protection);
        self.backup = Some(BackupSide {
            session,
            ready: None,
            gone: false,
            refuses: None,
            spec: hello.spec.clone(),
            primary: hello.from.clone(),
        });
        let elsewhere = Refusal::RunsElsewhere { host: Some(hello.from.clone()) };
        self.drop_restore("another host has the VM", elsewhere.clone());
        self.start_failed(elsewhere);
        self.log_session(hello);
        // Without its log it would acknowledge what is in none.
        self.effect(Effect::AcceptOffer { offer, session, log: self.log.id });
    }

    /// The session's QEMU is there: the primary hears what this host holds, and in what it differs.
    pub(crate) fn backup_ready(&mut self, session: Term, status: MachineStatus, base: Option<Base>) {
        let now = self.now.boottime;
        let Some(backup) = self.backup.as_mut().filter(|b| b.session == session) else { return };
        backup.ready = Some(now);
        self.machine = Some(status);
        if let Some(base) = base {
            let mut changes = Vec::new();
            base.put_changes(&mut changes);
            self.tell_primary(Word::Base { epoch: base.epoch, changes });
        }
        self.tell_differences();
        self.tell_primary(Word::Ready);
    }

    /// Says in what this host's file differs from the VM that it is about to hold.
    fn tell_differences(&mut self) {
        let found = self.booted_otherwise();
        if !found.is_empty()
            && let Ok(json) = serde_json::to_vec(&found)
        {
            self.tell_primary(Word::Differences { json });
        }
    }

    /// The primary was last heard `silence` ago.
    pub(crate) fn primary_gone(&mut self, session: Term, reason: String, silence: Duration, relinquished: bool) {
        let Some(backup) = &mut self.backup else { return };
        if backup.session != session || backup.gone {
            return;
        }
        backup.gone = true;
        if !relinquished {
            // The receiver's thread ends its stream and loads what it holds. A primary that said farewell keeps its
            // connection until this host has the VM or knows that it will not.
            self.primary(PrimaryOrder::Cut);
        }
        self.takeover = Some(Takeover {
            suspected: self.now.monotonic,
            detect_us: micros(silence),
            won: None,
            loaded: None,
            ready: false,
            origin: Origin::Primary,
        });
        self.input(Input::PrimaryLost { session, reason });
    }

    /// This host has the VM: its standby is to be loaded.
    pub(crate) fn won(&mut self) {
        let others = self.protocol.has_heirs();
        self.primary(PrimaryOrder::Load { others });
    }

    /// Another backup has the VM, as `record` shows: this one's primary is lost, whatever it still says.
    pub(crate) fn check_overtaken(&mut self, record: &WitnessRecord) {
        if let (true, Some(session)) = (self.protocol.is_overtaken(record), self.protocol.backing()) {
            let reason = format!("the witness names {} in term {}", record.primary, record.term);
            let silence = self.primary_silence();
            self.primary_gone(session, reason, silence, false);
        }
    }

    /// For how long the primary had said nothing at the last tick.
    pub(crate) fn primary_silence(&self) -> Duration {
        let ours = self.backup.as_ref().map(|b| b.session);
        self.observed.primary_silence.filter(|(session, _)| Some(*session) == ours).map_or(Duration::ZERO, |(_, s)| s)
    }

    /// The time in the primary's newest heartbeat, as of the last tick.
    pub(crate) fn primary_echo(&self) -> u64 {
        let ours = self.backup.as_ref().map(|b| b.session);
        let of = self.observed.primary_silence.map(|(session, _)| session);
        if of == ours { self.observed.primary_echo } else { 0 }
    }

    /// A spare looks at the witness more often than others: the VM may be given back to it, and stands still until it has seen that. For
    /// so long as its standby would be kept for a session; and while the witness does not answer nobody can give anything back.
    pub(crate) fn check_spare(&mut self) {
        if !self.protocol.is_spare() {
            self.spare = None;
            return;
        }
        let now = self.now.monotonic;
        if self.spare.is_none() {
            // A primary that has said farewell waits for that.
            self.primary(PrimaryOrder::Cut);
        }
        let witness = match (&self.witness_trouble, &self.doubt) {
            (None, _) => Witness::Good,
            (Some(_), None) => Witness::None,
            (Some(_), Some(_)) => Witness::Doubted,
        };
        let spare = self.spare.get_or_insert(SpareSide::begin(now));
        if spare.is_over(witness, now) {
            // Nor is it kept for a session any longer.
            self.drop_backup();
            let term = self.protocol.term();
            self.end_spare();
            self.event(EventKind::StoodDown { term, reason: "nobody has given the VM back in time".into() });
            // Nobody else may be able to go on either.
            self.log_after_loss();
        } else if now.since(spare.looked) >= SPARE_LOOK {
            spare.looked = now;
            self.ask(WitnessRequest::Look);
        }
    }

    /// What this host holds in case that the VM is given back to it is not wanted any more.
    fn end_spare(&mut self) {
        if self.protocol.is_spare() {
            self.reset_protocol();
        }
    }

    /// The VM has ended here while it was being stopped, and the witness has still to say that nobody else may have it.
    pub(crate) fn is_ending(&self) -> bool {
        self.protocol.is_gone() && self.protocol.is_stopping()
    }

    /// A person wants the VM here, whatever this host waits for: to be given it back, or to hear that it has stopped.
    pub(crate) fn end_waiting(&mut self) {
        if self.is_ending() {
            // Nobody hears any more that it has stopped.
            for kind in [OperationKind::Stop, OperationKind::Shutdown] {
                self.operation_ends(kind, Err(Refusal::Cancelled));
            }
            self.reset_protocol();
        }
        self.end_spare();
    }

    /// What this host holds cannot be acknowledged, because of its disk. It is whole, and perhaps all that is left of the VM: it is given
    /// up only for a primary that is seen to live.
    pub(crate) fn cannot_acknowledge(&mut self, session: Term, reason: String) {
        let now = self.now.boottime;
        if let Some(backup) = self.backup.as_mut().filter(|b| b.session == session) {
            tracing::error!(%reason, "a checkpoint cannot be acknowledged");
            backup.refuses.get_or_insert((now, reason));
        }
    }

    /// Tells a primary that has said something since that this host is no backup.
    pub(crate) fn check_refusal(&mut self) {
        let (now, silence) = (self.now.boottime, self.primary_silence());
        // What lies unread, or was read after this host had stood still, may be old: it says nothing of whether the primary is there now.
        let known = !silence.is_zero() && now.since(self.stall.thawed) > self.failure_timeout();
        let waits = self.rules.refuse_for_who_lives;
        let heard = |(since, _): &mut (Boottime, String)| !waits || (known && silence < now.since(*since));
        if let Some(backup) = self.backup.as_mut().filter(|b| !b.gone)
            && let Some((_, reason)) = backup.refuses.take_if(heard)
        {
            let session = backup.session;
            self.load_failed(session, &reason);
        }
    }

    pub(crate) fn load_failed(&mut self, session: Term, reason: &str) {
        // One that has failed already is being given back, or waits for the witness's answer.
        if self.unloaded || self.backup.as_ref().is_none_or(|b| b.session != session) {
            return;
        }
        tracing::error!(%reason, "no standby");
        let refusal = reason.to_owned();
        self.tell_primary(Word::Refuse { reason: refusal.clone() });
        self.event(EventKind::Refused { peer: format!("session {session}"), reason: refusal.clone() });
        // The witness may have given this host the VM: the others that hold it are to have it.
        if self.takeover.is_some() && (self.protocol.may_have_won() || self.protocol.role() == Role::Primary) {
            return self.cannot_resume(format!("the checkpoint cannot be loaded: {refusal}"));
        }
        // Without a standby there is nothing to claim the VM with, whatever checkpoint is held: what was not asked of the
        // witness will not be, and the primary goes on. If there is none, the log may be gone on from.
        let goes_on = self.takeover.is_some();
        self.reset_protocol();
        if goes_on {
            self.log_after_loss();
        }
    }

    /// This host has won the VM, or may have, and cannot go on with it. Its log is looked at when the VM is nobody's here.
    fn cannot_resume(&mut self, reason: String) {
        // What is loaded all the same is not resumed.
        (self.unloaded, self.takeover) = (true, None);
        self.input(Input::CannotResume { reason });
        self.log_after_loss();
    }

    /// Forgets everything: a fresh standby.
    pub(crate) fn reset_protocol(&mut self) {
        let reason = "this host has given up what it held of it".to_owned();
        self.stand_down("what this host held of the VM is given up", Refusal::VmEnded { reason });
        self.protocol.abandon();
        // One that has stopped is told of when its log is gone.
        if !self.log.is_being_removed() {
            self.nothing_is_here();
        }
    }

    /// Goes on with the VM, when the witness has granted it and the standby is loaded.
    pub(crate) fn try_resume(&mut self) {
        let Some(Takeover { won: Some((epoch, arbitrate_us)), loaded: Some(_), detect_us, .. }) = self.takeover else {
            return;
        };
        let Some(Takeover { loaded: Some((source, loaded)), origin, suspected, .. }) = self.takeover.take() else {
            return;
        };
        // The checkpoint that was held when the claim began, or a whole one that came right after it.
        let Loaded { spec, epoch: held, health, load_us, tracked, history, logged } = *loaded;
        let watchdog = spec.watchdog();
        self.booted = Some(spec);
        let epoch = held.max(epoch);
        let term = self.protocol.term();
        let log = self.log.id.filter(|_| logged && tracked && self.log_lives());
        self.disks(DisksOrder::Used);
        // Before the guest runs, and before anything is let through.
        self.forget_holders();
        if history.is_some() {
            self.disks(DisksOrder::Remember(Basis::Resumed));
        }
        // What is committed and not yet in the images lies over them.
        if let Some(id) = log {
            self.effect(Effect::Log { id, order: LogOrder::Reign(term) });
            self.log_first(Epoch(1));
        } else {
            // A log that does not end with this checkpoint is of no use: another is begun.
            self.leave_log();
            match (self.holding, self.log.images_wait) {
                (true, _) => {}
                (false, Some(_)) => self.disks(DisksOrder::Hold),
                (false, None) => self.disks(DisksOrder::GoThrough),
            }
        }
        // From the start on the guest runs, and the VM cannot be given back: what can fail before comes before. Its owner's pause goes on;
        // what is off does not run again.
        let run = !health.standing.paused && health.standing.activity != Activity::Off;
        self.effect(Effect::Vm(VmOrder::Start { source, run }));
        let began = self.now.monotonic;
        self.resuming = Some(Box::new(Resuming {
            source,
            origin,
            suspected,
            detect_us,
            arbitrate_us,
            load_us,
            began,
            epoch,
            term,
            health,
            watchdog,
            log,
            history,
            tracked,
        }));
    }

    pub(crate) fn guest_not_started(&mut self, reason: &str) {
        if self.resuming.is_some() {
            self.drop_resuming();
            self.cannot_resume(format!("the standby does not run: {reason}"));
        }
    }

    /// What was about to be resumed is not.
    pub(crate) fn drop_resuming(&mut self) {
        let remembered = |r: &Resuming| r.history.is_some();
        let resuming = self.resuming.take().is_some_and(|r| remembered(&r));
        let resumed = self.resumed.take().is_some_and(|r| remembered(&r.resuming));
        if resuming || resumed {
            self.disks(DisksOrder::Forget(Basis::Resumed));
        }
    }

    pub(crate) fn guest_started(&mut self, layout: Layout, status: MachineStatus) {
        let Some(resuming) = self.resuming.take() else { return };
        self.layout = Some(layout);
        let (source, standing) = (resuming.source, resuming.health.standing);
        let now = self.now.monotonic;
        let phases = FailoverPhases {
            detect_us: resuming.detect_us,
            arbitrate_us: resuming.arbitrate_us,
            load_us: resuming.load_us,
            resume_us: micros(now.since(resuming.began)),
        };
        let took = Duration::from_micros(resuming.detect_us) + now.since(resuming.suspected);
        self.resumed = Some(Box::new(Resumed { source, resuming: *resuming, phases, took }));
        self.input(Input::Resumed);
        self.machine = Some(MachineStatus { run_state: standing.to_string(), ..status });
        // Open first: a console has no second chance for what it says at once.
        if !self.holding {
            self.open_gate();
        }
        self.guest_io(GuestIoOrder::Attach(Some(source)));
        self.guest_io(GuestIoOrder::Announce);
        if !self.awaits_gate() {
            self.go_on_resumed();
        }
    }

    /// The rest, once it is known whether output is held: the VM's thread begins.
    pub(crate) fn go_on_resumed(&mut self) {
        let Some(resumed) = self.resumed.take() else { return };
        let Resumed { source, resuming, phases, took } = *resumed;
        let Resuming { origin, epoch, term, health, watchdog, log, history, tracked, load_us, .. } = resuming;
        self.announcing = Some((self.now.monotonic, AnnouncePlan::new()));
        self.counters.failovers += u64::from(origin == Origin::Primary);
        let frozen = self.goes_on_frozen(&health);
        self.run_vm(source, health.standing, log, tracked, history.is_some());
        self.former_backups = history.map(|history| FormerBackups { history, since: self.now.monotonic });
        self.former = self.backup.as_ref().map(|b| b.primary.clone());
        self.set_pace();
        self.drop_backup();
        let load_ms = load_us / 1000;
        match origin {
            Origin::Log => {
                // A person's, if it is one.
                self.drop_job();
                self.event(EventKind::Recovered { term, epoch, load_ms });
            }
            Origin::Snapshot { name } => {
                self.drop_job();
                self.event(EventKind::Restored { term, name, load_ms });
            }
            Origin::Primary => {
                self.event(EventKind::TookOver { term, epoch, phases });
                self.measure(Metric::Failover(took));
            }
        }
        self.say_what_differs();
        self.guest_runs();
        self.health_input(policy::Input::TookOver { watchdog, health });
        if frozen {
            self.thaw();
        }
    }

    pub(crate) fn drop_backup(&mut self) {
        self.primary(PrimaryOrder::Drop);
        self.backup = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A spare outlives a witness that does not answer, and one that has lost its register for a while, but not for ever.
    #[test]
    fn a_spare_waits_for_as_long_as_somebody_may_give_the_vm_back() {
        let (begun, tick) = (Monotonic::from_micros(0), Duration::from_secs(1));
        // After how many seconds of this word it is over.
        let waits = |spare: &mut SpareSide, from: u32, word, most: u32| {
            (from..from + most).find(|n| spare.is_over(word, begun + tick * *n)).map(|n| n - from)
        };
        let (keep, limit) = (KEEP.as_secs() as u32, DOUBT_LIMIT.as_secs() as u32);
        let mut spare = SpareSide::begin(begun);
        assert_eq!(waits(&mut spare, 0, Witness::Good, 2 * keep), Some(keep + 1));
        let mut spare = SpareSide::begin(begun);
        assert_eq!(waits(&mut spare, 0, Witness::None, 3 * limit), None);
        assert_eq!(waits(&mut spare, 3 * limit, Witness::Good, 2 * keep), Some(keep));
        let mut spare = SpareSide::begin(begun);
        assert_eq!(waits(&mut spare, 0, Witness::Doubted, 3 * limit), Some(limit + keep + 1));
        // It is believed again in time: the next doubt is another one.
        let mut spare = SpareSide::begin(begun);
        assert_eq!(waits(&mut spare, 0, Witness::Doubted, limit), None);
        assert!(!spare.is_over(Witness::Good, begun + tick * limit));
        assert_eq!(waits(&mut spare, limit, Witness::Doubted, limit), None);
    }
}
