//! The backup's side: an offered session, a lost primary, the takeover.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ninefold_model::Record as WitnessRecord;
use ninefold_model::event::{EventKind, FailoverPhases};
use ninefold_model::spec::VmSpec;
use ninefold_model::status::Role;
use ninefold_model::{Activity, Epoch, HostName, SnapshotName, Standing, Term};
use ninefold_net::announce::AnnouncePlan;
use ninefold_replica::protocol::{Action, Input};
use ninefold_replica::stream::{Hello, Record, write_record};
use ninefold_transport::clock::Moment;
use ninefold_transport::{LinkHandle, LinkWriter};

use super::Core;
use super::survivors::Survivors;
use crate::arbiter::Question;
use crate::capture::micros;
use crate::error;
use crate::health;
use crate::parking::KEEP;
use crate::standby::{self, Accepted, Loaded, Verdict};
use crate::vm::Continued;

/// How often a spare asks what the witness holds.
const SPARE_LOOK: Duration = Duration::from_millis(100);
/// How long a spare waits for a witness that answers and cannot be believed: a person may bring its register back meanwhile. If that does not come
/// back, nothing else ends the spare, but for who starts the VM with force.
const DOUBT_LIMIT: Duration = Duration::from_secs(3600);

/// A backup that has lost its claim, and might be given the VM.
pub(super) struct SpareSide {
    /// Since when the witness could have shown that.
    since: Instant,
    /// Since when it answers, and cannot be believed.
    doubted: Option<Instant>,
    looked: Instant,
}

/// What a spare has of its witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// It shows what it holds.
    Good,
    /// It does not answer: nobody can give anything back.
    None,
    /// It answers, and cannot be believed.
    Doubted,
}

impl SpareSide {
    fn begin(now: Instant) -> Self {
        Self { since: now, doubted: None, looked: now }
    }

    /// Whether the VM is not waited for any longer.
    fn is_over(&mut self, word: Word, now: Instant) -> bool {
        match word {
            Word::Good => self.doubted = None,
            Word::None => self.since = now,
            Word::Doubted => {
                let begun = *self.doubted.get_or_insert(now);
                if now.saturating_duration_since(begun) <= DOUBT_LIMIT {
                    self.since = now;
                }
            }
        }
        now.saturating_duration_since(self.since) > KEEP
    }
}

/// A session in which this host is the backup.
pub(super) struct BackupSide {
    pub(super) session: Term,
    pub(super) writer: LinkWriter,
    pub(super) handle: LinkHandle,
    pub(super) scratch: Vec<u8>,
    /// When its QEMU was there. Before, nobody reads what the primary says, and its silence means nothing.
    pub(super) ready: Option<Moment>,
    /// The time in the primary's newest heartbeat, as the receiver's thread has read it.
    pub(super) echo: Arc<AtomicU64>,
    pub(super) gone: bool,
    /// The VM as it was booted: the standby has the same devices.
    pub(super) spec: VmSpec,
    pub(super) primary: HostName,
    /// What becomes of its standby when the primary is gone. Closed: it is of no use.
    pub(super) verdict: SyncSender<Verdict>,
}

/// A takeover in progress: it needs the witness's word and the loaded standby. The witness is asked when the standby is ready.
pub(super) struct Takeover {
    pub(super) suspected: Instant,
    pub(super) detect_us: u64,
    pub(super) won: Option<(Epoch, u64)>,
    pub(super) loaded: Option<Box<Loaded>>,
    /// The last checkpoint is in the standby's memory, whole.
    pub(super) ready: bool,
    pub(super) origin: Origin,
}

/// Where a checkpoint that is resumed from has come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Primary,
    Log,
    Snapshot { name: SnapshotName },
}

impl Core {
    pub(super) fn offer(
        &mut self,
        hello: &Hello,
        writer: LinkWriter,
        handle: LinkHandle,
        go: &SyncSender<Option<Accepted>>,
    ) {
        let mut actions = Vec::new();
        self.protocol.handle(Input::Offer { from: hello.from.clone(), session: hello.term }, &mut actions);
        let mut writer = writer;
        for action in actions {
            match action {
                Action::AcceptSession { session } => {
                    self.parts.parking.announce(session);
                    self.park_backup();
                    self.keep_log();
                    self.drop_backup();
                    self.parts.outlets.forget();
                    self.committed = Epoch(0);
                    self.epochs = hello.epoch_policy;
                    // What the owner wants of the VM travels with it.
                    self.want(hello.spec.protection);
                    let (verdict, heard) = sync_channel(1);
                    let echo = Arc::new(AtomicU64::new(0));
                    self.backup = Some(BackupSide {
                        session,
                        writer,
                        handle,
                        scratch: Vec::new(),
                        ready: None,
                        echo: Arc::clone(&echo),
                        gone: false,
                        spec: hello.spec.clone(),
                        primary: hello.from.clone(),
                        verdict,
                    });
                    self.drop_restore("another host has the VM");
                    self.log_session(hello);
                    let log = self.log.handle.as_ref().map(|h| h.jobs.clone());
                    if log.is_none() && self.parts.config.vm.non_volatile.is_some() {
                        // It would acknowledge what is in no log.
                        self.load_failed(session, "the log cannot be kept");
                        let _ = go.send(None);
                        return;
                    }
                    let _ = go.send(Some(Accepted { log, verdict: heard, echo }));
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
        let _ = go.send(None);
    }

    pub(super) fn tell_primary(&mut self, record: &Record<'_>) {
        if let Some(backup) = &mut self.backup {
            // An error shows as the end of the stream.
            let _ = write_record(&mut backup.writer, &mut backup.scratch, record);
            let _ = std::io::Write::flush(&mut backup.writer);
        }
    }

    /// Says in what this host's file differs from the VM that it is about to hold.
    pub(super) fn tell_differences(&mut self, session: Term) {
        let found = self.booted_otherwise();
        if !found.is_empty()
            && let Ok(json) = serde_json::to_vec(&found)
        {
            self.tell_primary(&Record::Differences { session: session.0, json: &json });
        }
    }

    pub(super) fn primary_gone(&mut self, session: Term, reason: String, relinquished: bool) {
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
        self.takeover = Some(Takeover {
            suspected: Instant::now(),
            detect_us,
            won: None,
            loaded: None,
            ready: false,
            origin: Origin::Primary,
        });
        self.input(Input::PrimaryLost { session, reason });
    }

    /// This host has the VM: its standby is to be loaded.
    pub(super) fn won(&self) {
        if let Some(backup) = &self.backup {
            let _ = backup.verdict.try_send(Verdict::Load { others: self.protocol.has_heirs() });
        }
    }

    /// Another backup has the VM, as `record` shows: this one's primary is lost, whatever it still says.
    pub(super) fn check_overtaken(&mut self, record: &WitnessRecord) {
        if let (true, Some(session)) = (self.protocol.is_overtaken(record), self.protocol.backing()) {
            let reason = format!("the witness names {} in term {}", record.primary, record.term);
            self.primary_gone(session, reason, false);
        }
    }

    /// A spare looks at the witness more often than others: the VM may be given back to it, and stands still until it has seen that. For
    /// so long as its standby would be kept for a session; and while the witness does not answer nobody can give anything back.
    pub(super) fn check_spare(&mut self) {
        if !self.protocol.is_spare() {
            self.spare = None;
            return;
        }
        let now = Instant::now();
        if let (None, Some(backup)) = (&self.spare, &self.backup) {
            // A primary that has said farewell waits for that.
            backup.handle.shutdown();
        }
        let word = match (&self.witness_error, &self.doubt) {
            (None, _) => Word::Good,
            (Some(_), None) => Word::None,
            (Some(_), Some(_)) => Word::Doubted,
        };
        let spare = self.spare.get_or_insert(SpareSide::begin(now));
        if spare.is_over(word, now) {
            // Nor is it kept for a session any longer.
            self.drop_backup();
            let term = self.protocol.term();
            self.end_spare();
            self.event(EventKind::StoodDown { term, reason: "nobody has given the VM back in time".into() });
            // Nobody else may be able to go on either.
            self.log_after_loss();
        } else if spare.looked.elapsed() >= SPARE_LOOK {
            spare.looked = now;
            let _ = self.parts.arbiter.send(Question::Look);
        }
    }

    /// What this host holds in case that the VM is given back to it is not wanted any more.
    pub(super) fn end_spare(&mut self) {
        if self.protocol.is_spare() {
            self.reset_protocol();
        }
    }

    pub(super) fn load_failed(&mut self, session: Term, reason: &str) {
        // One that has failed already is being given back, or waits for the witness's answer.
        if self.unloaded || self.backup.as_ref().is_none_or(|b| b.session != session) {
            return;
        }
        tracing::error!(%reason, "no standby");
        let refusal = reason.to_owned();
        if let Some(backup) = &mut self.backup {
            standby::refuse(&mut backup.writer, &refusal);
        }
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
    pub(super) fn reset_protocol(&mut self) {
        self.stand_down();
        self.protocol.abandon();
    }

    pub(super) fn try_resume(&mut self) {
        let Some(Takeover { won: Some((epoch, arbitrate_us)), loaded: Some(_), detect_us, .. }) = self.takeover else {
            return;
        };
        let Some(Takeover { loaded: Some(loaded), origin, suspected, .. }) = self.takeover.take() else { return };
        // The checkpoint that was held when the claim began, or a whole one that came right after it.
        let Loaded { mut machine, ports, spec, epoch: held, health, load_us, tracker, history, logged, stopped } =
            *loaded;
        let watchdog = spec.watchdog.clone();
        self.booted = Some(spec);
        let epoch = held.max(epoch);
        let began = Instant::now();
        let term = self.protocol.term();
        let logged = logged && self.log_lives();
        let log = self.log.handle.as_ref().filter(|_| logged).map(|log| log.jobs.clone());
        let survivors = history.is_some();
        let (tracker, unneeded) = if log.is_some() || survivors { (tracker, None) } else { (None, tracker) };
        let continued = tracker.map(|tracker| Continued { tracker, log, survivors });
        self.parts.disks.used();
        // Before the guest runs, and before anything is let through.
        let survivors = history.map(|h| Survivors::of(h, Arc::clone(&self.parts.disks)));
        // What is committed and not yet in the images lies over them.
        if continued.as_ref().is_some_and(|c| c.log.is_some()) {
            if let Some(handle) = &self.log.handle {
                handle.reign(term);
            }
            self.log_first(Epoch(1));
        } else {
            // A log that does not end with this checkpoint is of no use: another is begun.
            self.leave_log();
            match (self.holding, self.log.images_wait) {
                (true, _) => {}
                (false, Some(_)) => self.parts.disks.hold(),
                (false, None) => self.parts.disks.go_through(),
            }
        }
        let standing = health.standing;
        // From the start on the guest runs, and the VM cannot be given back: what can fail before comes before.
        let layout = match standby::layout(&machine) {
            Ok(layout) => layout,
            Err(reason) => {
                drop(machine);
                return self.cannot_resume(format!("the standby does not run: {reason}"));
            }
        };
        let started = match (stopped, standing.activity) {
            // Its owner's pause goes on; what is off does not run again.
            _ if standing.paused => Ok(()),
            (_, Activity::Off) => Ok(()),
            (Some((stopped, choice)), _) => machine.start_after(stopped.elapsed(), choice),
            (None, _) => machine.start(),
        };
        if let Err(error) = started {
            let reason = error::report(&error);
            // It has been killed, and said nothing: its sockets are served from here on.
            drop(machine);
            return self.cannot_resume(format!("the standby does not run: {reason}"));
        }
        self.layout = Some(layout);
        self.input(Input::Resumed);
        let took = Duration::from_micros(detect_us) + suspected.elapsed();
        let phases = FailoverPhases { detect_us, arbitrate_us, load_us, resume_us: micros(began.elapsed()) };
        self.machine = Some(standby::status(&machine, "as before the failover", &standing.to_string()));
        // Open first: a console has no second chance for what it says at once.
        if !self.holding {
            self.open_gate();
        }
        if let Err(error) = self.parts.outlets.attach(ports) {
            tracing::error!(%error, "the VM's sockets cannot be served");
        }
        self.parts.outlets.announce(&|| true);
        self.announcing = Some((Instant::now(), AnnouncePlan::new()));
        self.counters.failovers += u64::from(origin == Origin::Primary);
        let obtain = Box::new(move || {
            // It waits to be suspended, if QEMU has not kept that; and QEMU is not waited for where heartbeats are sent.
            if standing == (Standing { activity: Activity::Suspended, paused: false }) {
                machine.stay_suspended().map_err(|e| error::report(&e))?;
            }
            // To end it takes a time in proportion to the memory: the guest runs already.
            drop(unneeded);
            Ok(machine)
        });
        let frozen = self.goes_on_frozen(&health);
        self.start_vm(obtain, standing, continued);
        if self.vm.is_some() {
            self.survivors = survivors;
            self.former = self.backup.as_ref().map(|b| b.primary.clone());
        }
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
                self.parts.board.failover(took);
            }
        }
        self.say_what_differs();
        self.guest_runs();
        self.health_input(health::policy::Input::TookOver { watchdog, health });
        if frozen {
            self.thaw();
        }
    }

    /// The checkpoint that this host holds as a backup is not gone on from here. Its primary, or whoever goes on from what that
    /// had, may open a session that it suits.
    pub(super) fn park_backup(&self) {
        if let Some(backup) = &self.backup {
            let _ = backup.verdict.try_send(Verdict::Park);
        }
    }

    pub(super) fn drop_backup(&mut self) {
        if let Some(backup) = self.backup.take() {
            backup.handle.shutdown();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A spare outlives a witness that does not answer, and one that has lost its register for a while, but not for ever.
    #[test]
    fn a_spare_waits_for_as_long_as_somebody_may_give_the_vm_back() {
        let (begun, tick) = (Instant::now(), Duration::from_secs(1));
        // After how many seconds of this word it is over.
        let waits = |spare: &mut SpareSide, from: u32, word, most: u32| {
            (from..from + most).find(|n| spare.is_over(word, begun + tick * *n)).map(|n| n - from)
        };
        let (keep, limit) = (KEEP.as_secs() as u32, DOUBT_LIMIT.as_secs() as u32);
        let mut spare = SpareSide::begin(begun);
        assert_eq!(waits(&mut spare, 0, Word::Good, 2 * keep), Some(keep + 1));
        let mut spare = SpareSide::begin(begun);
        assert_eq!(waits(&mut spare, 0, Word::None, 3 * limit), None);
        assert_eq!(waits(&mut spare, 3 * limit, Word::Good, 2 * keep), Some(keep));
        let mut spare = SpareSide::begin(begun);
        assert_eq!(waits(&mut spare, 0, Word::Doubted, 3 * limit), Some(limit + keep + 1));
        // It is believed again in time: the next doubt is another one.
        let mut spare = SpareSide::begin(begun);
        assert_eq!(waits(&mut spare, 0, Word::Doubted, limit), None);
        assert!(!spare.is_over(Word::Good, begun + tick * limit));
        assert_eq!(waits(&mut spare, limit, Word::Doubted, limit), None);
    }
}
