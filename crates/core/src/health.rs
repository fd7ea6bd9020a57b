//! The guest's health: the core asks the policy and does what it decides.

use std::time::Duration;

use ninefold_control::{Answer, OperationKind, Refusal, Reply, Request, Work};
use ninefold_model::event::EventKind;
use ninefold_model::health::{DumpProgress, Failure, Health, HealthStatus, HealthySign, WatchdogPolicy};
use ninefold_model::spec::Boot;
use ninefold_model::status::ProtectionState;
use ninefold_replica::protocol::Input as ProtocolInput;

use crate::core::Core;
use crate::effect::{Effect, GuestIoOrder, GuestOrder, Metric, TrialOutcome, VmOrder};
use crate::policy::{Decision, Happened, Input, Policy};
use crate::refusal;
use crate::settings::Settings;
use crate::time::Monotonic;

/// How often the policy's time goes on and the console is looked at.
const STEP: Duration = Duration::from_millis(50);
/// Of a step that took longer, this much counts: while a host stands still its guest does, too.
const LONGEST_STEP: Duration = Duration::from_millis(200);

/// What the core has of the guest's health.
pub(crate) struct HealthSide {
    pub(crate) policy: Policy,
    /// The image that is on record as the committed one; none: that of the configuration.
    pub(crate) committed: Option<Boot>,
    /// What checkpoints say.
    told: Health,
    /// The VM's QEMU is to be launched anew, and why, as soon as there is no session.
    relaunch: Option<String>,
    /// The guest runs; a QEMU that is being launched is not its.
    running: bool,
    passed: Monotonic,
    dump: Option<DumpProgress>,
}

impl HealthSide {
    pub(crate) fn new(settings: &Settings, committed: Option<Boot>, now: Monotonic) -> Self {
        Self {
            policy: Policy::new(settings.vm.watchdog(), settings.boot.clone(), committed.clone()),
            committed,
            told: Health::default(),
            relaunch: None,
            running: false,
            passed: now,
            dump: None,
        }
    }

    /// What the opening of a session tells the backup.
    pub(crate) fn health(&self) -> Health {
        self.policy.health()
    }

    fn status(&self) -> HealthStatus {
        HealthStatus {
            watchdog: self.policy.watchdog().cloned(),
            failures: self.policy.failures(),
            image: self.policy.image().clone(),
            trial: self.policy.trial(),
            committed: self.policy.committed().clone(),
            dump: self.dump,
        }
    }
}

impl Core {
    pub(crate) fn health_input(&mut self, input: Input) {
        let mut decisions = Vec::new();
        self.health.policy.handle(input, &mut decisions);
        for decision in decisions {
            self.carry_out(decision);
        }
        // A session that is being ended has not seen the image that is to be launched.
        if self.health.relaunch.is_none() {
            self.tell_health();
        }
    }

    fn tell_health(&mut self) {
        let health = self.health.policy.health();
        if self.health.told != health {
            self.health.told = health.clone();
            self.guest(GuestOrder::Tell(health));
        }
    }

    /// Nothing of the VM is here any more.
    pub(crate) fn health_ends(&mut self) {
        self.forget_health();
        let (watchdog, committed) = (self.settings.vm.watchdog(), self.health.committed.clone());
        self.health.policy.handle(Input::Boots { watchdog, committed }, &mut Vec::new());
    }

    /// Its QEMU is gone.
    fn forget_health(&mut self) {
        self.health.relaunch = None;
        self.health.running = false;
        self.health.dump = None;
        self.guest(GuestOrder::Frozen(false));
    }

    fn carry_out(&mut self, decision: Decision) {
        match decision {
            Decision::Reset => self.command(VmOrder::Reset),
            Decision::Dump => self.order_dump(),
            Decision::Relaunch { reason } => {
                self.health.relaunch = Some(reason.clone());
                self.input(ProtocolInput::Part { reason });
            }
            Decision::Stop { reason } => self.input(ProtocolInput::Stop { reason }),
            Decision::Keep { trial, image, before, reason } => self.keep_image(trial, image, before, reason),
            // Asked for by a request, which was answered.
            Decision::Refuse(refused) => tracing::debug!(?refused, "refused"),
            Decision::Emit(happened) => {
                match &happened {
                    Happened::Failed { failure, action, .. } => self.measure(Metric::GuestFailed(*failure, *action)),
                    Happened::FellBack { trial, reason, .. } => {
                        self.measure(Metric::Trial(TrialOutcome::FellBack));
                        self.trial_ends(*trial, Err(Refusal::FellBack { reason: reason.clone() }));
                    }
                    Happened::TrialStarted { .. } => {}
                }
                self.event(happened.into());
            }
        }
    }

    fn keep_image(&mut self, trial: u64, image: Boot, before: Option<Boot>, reason: String) {
        let record = self.health.policy.record().cloned();
        self.guest(GuestOrder::KeepImage { trial, record, image, before, reason });
    }

    pub(crate) fn image_kept(
        &mut self,
        trial: u64,
        image: Boot,
        before: Option<Boot>,
        reason: String,
        failure: Option<String>,
    ) {
        match failure {
            None => {
                self.measure(Metric::Trial(TrialOutcome::Committed));
                let event = EventKind::ImageCommitted { image, reason };
                self.trial_ends(trial, Ok(Some(event.clone())));
                self.event(event);
            }
            // Otherwise the VM has gone, or another image was committed since.
            Some(reason) if self.has_vm && self.health.policy.committed() == &image => {
                self.health_input(Input::NotKept { trial, before, reason });
            }
            Some(reason) => {
                tracing::error!(%reason, "the committed image is not on record");
                self.trial_ends(
                    trial,
                    Err(Refusal::FellBack { reason: format!("the image cannot be kept: {reason}") }),
                );
            }
        }
    }

    pub(crate) fn guest_failed(&mut self, generation: u64, failure: Failure) {
        // A guest that is to be launched anew is done with.
        if self.is_here(generation) && self.health.relaunch.is_none() {
            self.health_input(Input::Failed(failure));
        }
    }

    fn order_dump(&mut self) {
        let keep = self.health.policy.watchdog().map_or(WatchdogPolicy::DUMPS, |w| w.policy.keep_dumps);
        self.health.dump = Some(DumpProgress::default());
        self.command(VmOrder::Dump { keep });
    }

    pub(crate) fn dump_progress(&mut self, generation: u64, progress: DumpProgress) {
        if generation == self.generation && self.health.dump.is_some() {
            self.health.dump = Some(progress);
        }
    }

    pub(crate) fn dumped(&mut self, generation: u64, outcome: EventKind) {
        // That of a former guest is told, and is not the one that is asked for now.
        let present = generation == self.generation;
        if present {
            self.operation_ends(
                OperationKind::Dump,
                match &outcome {
                    EventKind::DumpFailed { reason } => Err(Refusal::Failed { reason: reason.clone() }),
                    dumped => Ok(Some(dumped.clone())),
                },
            );
        }
        self.event(outcome);
        if present {
            self.health.dump = None;
            self.health_input(Input::Dumped);
        }
    }

    /// Whether the VM's QEMU is there, and its guest with it.
    pub(crate) fn guest_is_up(&self) -> bool {
        self.health.relaunch.is_none() && self.health.running
    }

    /// Whether its QEMU is to be launched anew, as soon as there is no session.
    pub(crate) fn is_to_relaunch(&self) -> bool {
        self.health.relaunch.is_some()
    }

    /// How far a dump is, while there is one.
    pub(crate) fn dump_so_far(&self) -> Option<DumpProgress> {
        self.health.dump
    }

    /// Whether the guest stands still for a dump.
    pub(crate) fn dumps(&self) -> bool {
        self.health.dump.is_some()
    }

    pub(crate) fn guest_runs(&mut self) {
        self.health.running = true;
        self.health.passed = self.now.monotonic;
    }

    /// QEMU is there, its guest does not run yet.
    pub(crate) fn guest_starts(&mut self) {
        // What an earlier guest said is no sign of this one's health. Of the one that failed, people want to read it.
        if self.health.policy.sign().is_some() {
            self.guest_io(GuestIoOrder::ForgetConsole);
        }
    }

    pub(crate) fn health_tick(&mut self) {
        let time = self.elapsed(self.health.passed);
        if time < STEP {
            return;
        }
        self.health.passed = self.now.monotonic;
        let side = &self.health;
        if !side.running
            || side.relaunch.is_some()
            || side.dump.is_some()
            || self.final_epoch.is_some()
            || !self.standing.runs()
        {
            return;
        }
        self.health_input(Input::Passed(time.min(LONGEST_STEP)));
        if let Some(HealthySign::Console { text }) = self.health.policy.sign() {
            let text = text.clone();
            self.guest(GuestOrder::Search { text });
        }
    }

    /// The console has said this, which was searched for.
    pub(crate) fn console_shows(&mut self, text: &str) {
        if matches!(self.health.policy.sign(), Some(HealthySign::Console { text: wanted }) if wanted == text) {
            let reason = format!("it said '{text}'");
            self.health_input(Input::Healthy { reason });
        }
    }

    /// Launches the VM's QEMU anew if that is wanted and no backup could take the VM over meanwhile.
    pub(crate) fn relaunch(&mut self) {
        // Not before it is known whether output of its former life is held: its checkpoints count on then.
        if !self.protocol.is_alone() || self.health.relaunch.is_none() || self.awaits_gate() || self.off {
            return;
        }
        let reason = self.health.relaunch.take().unwrap_or_default();
        tracing::info!(%reason, "QEMU is launched anew");
        // What was asked of the former guest does not happen any more.
        for kind in [OperationKind::Shutdown, OperationKind::Dump] {
            self.operation_ends(kind, Err(Refusal::Relaunched { reason: reason.clone() }));
        }
        self.drop_snapshot("the VM's QEMU is launched anew", Refusal::Relaunched { reason });
        self.forget_health();
        // Until it is there, no backup is looked for.
        self.layout = None;
        self.machine = None;
        self.forget_peer();
        self.guest_io(GuestIoOrder::Detach);
        if std::mem::take(&mut self.has_vm) {
            self.effect(Effect::Vm(VmOrder::End { relaunch: true }));
        }
        self.boot();
        self.tell_health();
    }

    /// QEMU is gone. True when that is the fault of an image on trial: then the committed one is booted.
    pub(crate) fn trial_lost(&mut self, reason: &str) -> bool {
        use ProtectionState::{Off, Syncing, Unprotected};
        let alone = matches!(self.protocol.protection(), Some(Off | Syncing | Unprotected));
        if !alone || self.health.policy.sign().is_none() {
            return false;
        }
        self.health_input(Input::TrialLost { reason: reason.to_owned() });
        true
    }

    /// The VM boots here, from this host's configuration.
    pub(crate) fn health_boots(&mut self) {
        let (watchdog, committed) = (self.settings.vm.watchdog(), self.health.committed.clone());
        self.health_input(Input::Boots { watchdog, committed });
    }

    pub(crate) fn health_request(&mut self, request: Request, unusable: Option<String>) -> Reply {
        if let Some(reason) = unusable {
            return Err(Refusal::ImageUnusable { reason });
        }
        let on_trial = self.health.policy.sign().is_some();
        let needs_guest = match &request {
            Request::CommitImage => on_trial,
            Request::FallBack => false,
            _ => true,
        };
        if needs_guest && !self.guest_is_up() {
            return Err(Refusal::Busy { with: Work::Launch });
        }
        match request {
            Request::Dump if self.health.dump.is_some() => Err(Refusal::Busy { with: Work::Dump }),
            Request::Dump => {
                self.order_dump();
                Ok(Answer::Done)
            }
            Request::Trial { image, within_ms, sign } => {
                let within = Duration::from_millis(within_ms);
                self.health_request_input(Input::Trial { image, within, sign })
            }
            Request::CommitImage => self.health_request_input(Input::Healthy { reason: "asked for".into() }),
            Request::FallBack => self.health_request_input(Input::FallBack),
            _ => Err(Refusal::Failed { reason: "this is not about the guest's health".into() }),
        }
    }

    fn health_request_input(&mut self, input: Input) -> Reply {
        let mut probe = Vec::new();
        self.health.policy.clone().handle(input.clone(), &mut probe);
        for decision in probe {
            if let Decision::Refuse(refused) = decision {
                return Err(refusal::of_policy(refused));
            }
        }
        self.health_input(input);
        Ok(Answer::Done)
    }

    pub(crate) fn health_status(&self) -> HealthStatus {
        let mut status = self.health.status();
        if !self.has_vm {
            // A backup hears of it while the core has nothing to do with it.
            let committed = self.health.committed.clone();
            status.committed = committed.unwrap_or_else(|| self.settings.boot.clone());
            status.image = status.committed.clone();
        }
        status
    }
}
