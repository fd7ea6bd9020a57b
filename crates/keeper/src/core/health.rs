//! The guest's health: the core asks the policy and does what it decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_model::control::{Request, Response};
use ninefold_model::event::EventKind;
use ninefold_model::health::{DumpProgress, Failure, Health, HealthStatus, HealthySign, MAX_IMAGE, Watchdog};
use ninefold_model::spec::Boot;
use ninefold_model::status::ProtectionState;
use ninefold_replica::protocol::Input as ProtocolInput;

use super::{Core, Parts};
use crate::error;
use crate::health::dumps::Dumps;
use crate::health::images::Images;
use crate::health::policy::{Decision, Happened, Input, Policy};
use crate::health::told::Told;
use crate::health::watcher::{Order, Watcher};
use crate::metrics::TrialOutcome;
use crate::msg::Msg;
use crate::vm::{Command, VmHandle};

/// How often the policy's time goes on and the console is looked at.
const STEP: Duration = Duration::from_millis(50);
/// Of a step that took longer, this much counts: while a host stands still its guest does, too.
const LONGEST_STEP: Duration = Duration::from_millis(200);

/// What the core has of the guest's health.
pub(super) struct HealthSide {
    pub(super) policy: Policy,
    told: Told,
    pub(super) images: Arc<Images>,
    dumps: Dumps,
    /// The VM's QEMU is to be launched anew, and why, as soon as there is no session.
    relaunch: Option<String>,
    /// The guest runs; a QEMU that is being launched is not its.
    running: bool,
    passed: Instant,
    dump: Option<DumpProgress>,
}

impl HealthSide {
    pub(super) fn new(parts: &Parts) -> Self {
        let (config, images) = (&parts.config, Arc::clone(&parts.images));
        Self {
            policy: Policy::new(config.vm.watchdog.clone(), config.vm.boot.clone(), images.committed()),
            told: Told::default(),
            images,
            dumps: Dumps::new(&config.dumps, config.vm.name.as_str()),
            relaunch: None,
            running: false,
            passed: Instant::now(),
            dump: None,
        }
    }

    /// The part of a VM's thread.
    pub(super) fn watcher(&self, generation: u64, core: std::sync::mpsc::Sender<Msg>) -> Watcher {
        Watcher::new(generation, self.dumps.clone(), self.told.clone(), core)
    }

    /// What checkpoints say.
    pub(super) fn told(&self) -> Told {
        self.told.clone()
    }

    /// What the opening of a session tells the backup.
    pub(super) fn health(&self) -> Health {
        self.policy.health()
    }

    /// Nothing of the VM is here any more.
    pub(super) fn stand_down(&mut self, watchdog: Option<Watchdog>) {
        self.forget();
        self.policy.handle(Input::Boots { watchdog, committed: self.images.committed() }, &mut Vec::new());
    }

    /// Its QEMU is gone.
    fn forget(&mut self) {
        self.relaunch = None;
        self.running = false;
        self.dump = None;
        self.told.frozen(false);
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
    pub(super) fn health_input(&mut self, input: Input) {
        let mut decisions = Vec::new();
        self.health.policy.handle(input, &mut decisions);
        for decision in decisions {
            self.carry_out(decision);
        }
        // A session that is being ended has not seen the image that is to be launched.
        if self.health.relaunch.is_none() {
            self.health.told.set(self.health.policy.health());
        }
    }

    fn carry_out(&mut self, decision: Decision) {
        match decision {
            Decision::Reset => self.command(Command::Health(Order::Reset)),
            Decision::Dump => self.order_dump(),
            Decision::Relaunch { reason } => {
                self.health.relaunch = Some(reason.clone());
                self.input(ProtocolInput::Part { reason });
            }
            Decision::Stop { reason } => self.input(ProtocolInput::Stop { reason }),
            Decision::Keep { image, before, reason } => self.keep_image(image, before, reason),
            // Asked for by a request, which was answered.
            Decision::Refuse { reason } => tracing::debug!(%reason, "refused"),
            Decision::Emit(happened) => {
                match &happened {
                    Happened::Failed { failure, action, .. } => self.parts.board.guest_failed(*failure, *action),
                    Happened::FellBack { .. } => self.parts.board.trial(TrialOutcome::FellBack),
                    Happened::TrialStarted { .. } => {}
                }
                self.event(happened.into());
            }
        }
    }

    /// A disk may be slow: a thread of its own writes.
    fn keep_image(&mut self, image: Boot, before: Option<Boot>, reason: String) {
        let (images, core) = (Arc::clone(&self.health.images), self.parts.core.clone());
        let record = self.health.policy.record().cloned();
        let told = (image.clone(), before.clone(), reason.clone());
        let keep = move || {
            let failure = images.keep(record.as_ref()).err().map(|e| error::report(&e));
            let _ = core.send(Msg::ImageKept { image, before, reason, failure });
        };
        if let Err(failed) = std::thread::Builder::new().name("images".into()).spawn(keep) {
            let (image, before, reason) = told;
            self.image_kept(image, before, reason, Some(failed.to_string()));
        }
    }

    pub(super) fn image_kept(&mut self, image: Boot, before: Option<Boot>, reason: String, failure: Option<String>) {
        match failure {
            None => {
                self.parts.board.trial(TrialOutcome::Committed);
                self.event(EventKind::ImageCommitted { image, reason });
            }
            // Otherwise the VM has gone, or another image was committed since.
            Some(reason) if self.vm.is_some() && self.health.policy.committed() == &image => {
                self.health_input(Input::NotKept { before, reason });
            }
            Some(reason) => tracing::error!(%reason, "the committed image is not on record"),
        }
    }

    pub(super) fn guest_failed(&mut self, generation: u64, failure: Failure) {
        // A guest that is to be launched anew is done with.
        if generation == self.generation && self.vm.is_some() && self.health.relaunch.is_none() {
            self.health_input(Input::Failed(failure));
        }
    }

    fn order_dump(&mut self) {
        let keep = self.health.policy.watchdog().map_or(Watchdog::DUMPS, |w| w.keep_dumps);
        self.health.dump = Some(DumpProgress::default());
        self.command(Command::Health(Order::Dump { keep }));
    }

    pub(super) fn dump_progress(&mut self, generation: u64, progress: DumpProgress) {
        if generation == self.generation && self.health.dump.is_some() {
            self.health.dump = Some(progress);
        }
    }

    pub(super) fn dumped(&mut self, generation: u64, outcome: EventKind) {
        self.event(outcome);
        if generation == self.generation {
            self.health.dump = None;
            self.health_input(Input::Dumped);
        }
    }

    /// Whether the VM's QEMU is there, and its guest with it.
    pub(super) fn guest_is_up(&self) -> bool {
        self.health.relaunch.is_none() && self.health.running
    }

    /// Whether the guest stands still for a dump.
    pub(super) fn dumps(&self) -> bool {
        self.health.dump.is_some()
    }

    pub(super) fn guest_runs(&mut self) {
        self.health.running = true;
        self.health.passed = Instant::now();
    }

    /// QEMU is there, its guest does not run yet.
    pub(super) fn guest_starts(&self) {
        // What an earlier guest said is no sign of this one's health. Of the one that failed, people want to read it.
        if self.health.policy.sign().is_some() {
            self.parts.outlets.forget();
        }
    }

    pub(super) fn health_tick(&mut self) {
        let time = self.health.passed.elapsed();
        if time < STEP {
            return;
        }
        self.health.passed = Instant::now();
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
            let said = self.parts.outlets.console_history();
            if said.windows(text.len().max(1)).any(|w| w == text.as_bytes()) {
                let reason = format!("it said '{text}'");
                self.health_input(Input::Healthy { reason });
            }
        }
    }

    /// Launches the VM's QEMU anew if that is wanted and no backup could take the VM over meanwhile.
    pub(super) fn relaunch(&mut self) {
        if !self.protocol.is_alone() || self.health.relaunch.is_none() {
            return;
        }
        if let Some(reason) = self.health.relaunch.take() {
            tracing::info!(%reason, "QEMU is launched anew");
        }
        self.health.forget();
        // Until it is there, no backup is looked for.
        self.layout = None;
        self.machine = None;
        self.link = None;
        self.parts.outlets.detach();
        let former = self.vm.take().and_then(VmHandle::end);
        self.boot(former);
        self.health.told.set(self.health.policy.health());
    }

    /// QEMU is gone. True when that is the fault of an image on trial: then the committed one is booted.
    pub(super) fn trial_lost(&mut self, reason: &str) -> bool {
        use ProtectionState::{Off, Syncing, Unprotected};
        let alone = matches!(self.protocol.protection(), Some(Off | Syncing | Unprotected));
        if !alone || self.health.policy.sign().is_none() {
            return false;
        }
        self.health_input(Input::TrialLost { reason: reason.to_owned() });
        true
    }

    /// The VM boots here, from this host's configuration.
    pub(super) fn health_boots(&mut self) {
        let watchdog = self.parts.config.vm.watchdog.clone();
        let committed = self.health.images.committed();
        self.health_input(Input::Boots { watchdog, committed });
    }

    pub(super) fn health_request(&mut self, request: Request) -> Response {
        let refuse = |message: String, help: &str| Response::Error { message, help: Some(help.into()), try_host: None };
        if let Request::Trial { image, sign, .. } = &request
            && let Err(message) = usable(image, sign)
        {
            return refuse(message, "the files must be there, under the same names, on every host of the VM");
        }
        let on_trial = self.health.policy.sign().is_some();
        let needs_guest = match &request {
            Request::CommitImage => on_trial,
            Request::FallBack => false,
            _ => true,
        };
        if needs_guest && !self.guest_is_up() {
            return refuse("the VM's QEMU is being launched".into(), "try again in a moment");
        }
        match request {
            Request::Dump if self.health.dump.is_some() => {
                refuse("the guest's memory is being written already".into(), "`ninefold vm status` shows how far it is")
            }
            Request::Dump => {
                self.order_dump();
                Response::Done
            }
            Request::Trial { image, within_ms, sign } => {
                let within = Duration::from_millis(within_ms);
                self.health_request_input(Input::Trial { image, within, sign })
            }
            Request::CommitImage => self.health_request_input(Input::Healthy { reason: "asked for".into() }),
            Request::FallBack => self.health_request_input(Input::FallBack),
            _ => refuse("not about the guest's health".into(), ""),
        }
    }

    fn health_request_input(&mut self, input: Input) -> Response {
        let mut probe = Vec::new();
        self.health.policy.clone().handle(input.clone(), &mut probe);
        for decision in probe {
            if let Decision::Refuse { reason } = decision {
                let help = Some("`ninefold vm status` shows which image runs".into());
                return Response::Error { message: reason, help, try_host: None };
            }
        }
        self.health_input(input);
        Response::Done
    }

    pub(super) fn health_status(&self) -> HealthStatus {
        let mut status = self.health.status();
        if self.vm.is_none() {
            // A backup hears of it while the core has nothing to do with it.
            let committed = self.health.images.committed();
            status.committed = committed.unwrap_or_else(|| self.parts.config.vm.boot.clone());
            status.image = status.committed.clone();
        }
        status
    }
}

/// Whether an image can be tried here.
fn usable(image: &Boot, sign: &HealthySign) -> Result<(), String> {
    let size = serde_json::to_vec(&(image, sign)).map_or(usize::MAX, |text| text.len());
    if size > MAX_IMAGE {
        return Err(format!("the image's description has {size} bytes: {MAX_IMAGE} are possible"));
    }
    if matches!(sign, HealthySign::Console { text } if text.is_empty()) {
        return Err("an empty text is no sign of health".into());
    }
    let files = match image {
        Boot::Linux { kernel, initrd, .. } => vec![Some(kernel), initrd.as_ref()],
        Boot::BootSector { image } => vec![Some(image)],
        // Its volume is where the committed image is, too: there would be nothing to fall back to.
        Boot::Volume => return Err("a trial needs an image of its own: the VM's volume is none".into()),
    };
    for path in files.into_iter().flatten() {
        if !path.is_absolute() {
            return Err(format!("{} is no absolute path", path.display()));
        }
        match std::fs::metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(format!("{} is no file", path.display())),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    Ok(())
}
