//! Prometheus metrics of one keeper.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use ninefold_core::effect::TrialOutcome;
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::health::{Failure, WatchdogAction};
use ninefold_model::status::{CertificateStatus, Counters, LogState, LogStatus, ProtectionState, Role};
use ninefold_model::{Epoch, GuestState, Term, VmName, VolumeName};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Step {
    Stop,
    Scan,
    Copy,
    Save,
    Cont,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabel {
    volume: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    failure: &'static str,
    action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TrialLabel {
    outcome: &'static str,
}

/// The metrics of one keeper.
#[derive(Debug)]
pub struct Board {
    registry: Registry,
    role: Family<StateLabel, Gauge>,
    protection: Family<StateLabel, Gauge>,
    guest: Family<StateLabel, Gauge>,
    term: Gauge<i64, AtomicI64>,
    committed: Gauge<i64, AtomicI64>,
    epoch: Histogram,
    pause: Histogram,
    steps: Family<StepLabel, Histogram>,
    commit: Histogram,
    dirty: Histogram,
    wire: Counter<u64, AtomicU64>,
    frames_out: Gauge,
    frames_in: Gauge,
    frames_held: Gauge,
    frames_dropped: Gauge,
    frames_stale: Gauge,
    volume_held: Family<VolumeLabel, Gauge>,
    volume_failed: Family<VolumeLabel, Gauge>,
    volume_stalled: Family<VolumeLabel, Gauge<f64, AtomicU64>>,
    writes_wait: Gauge,
    failovers: Counter,
    failover: Histogram,
    waits: Histogram,
    longest_wait: Gauge<f64, AtomicU64>,
    guest_failures: Family<FailureLabels, Counter>,
    trials: Family<TrialLabel, Counter>,
    log: Family<StateLabel, Gauge>,
    log_length: Gauge,
    log_written: Counter<u64, AtomicU64>,
    log_commit: Histogram,
    logs_lost: Counter,
    certificate_end: Family<NoLabel, Gauge>,
    list_due: Family<NoLabel, Gauge>,
    identity_unusable: Family<NoLabel, Gauge>,
}

/// Of a metric that is not there before it has a value.
type NoLabel = Vec<(String, String)>;

/// From 0.1 ms to 6.5 s.
fn seconds() -> Histogram {
    Histogram::new((0..17).map(|i| 0.0001 * f64::from(1 << i)))
}

impl Board {
    pub fn new(vm: &VmName) -> Self {
        let mut registry = Registry::with_labels([("vm".into(), vm.to_string().into())].into_iter());
        let mut board = Self {
            role: Family::default(),
            protection: Family::default(),
            guest: Family::default(),
            term: Gauge::default(),
            committed: Gauge::default(),
            epoch: seconds(),
            pause: seconds(),
            steps: Family::new_with_constructor(seconds),
            commit: seconds(),
            dirty: Histogram::new((0..20).map(|i| f64::from(1 << i))),
            wire: Counter::default(),
            frames_out: Gauge::default(),
            frames_in: Gauge::default(),
            frames_held: Gauge::default(),
            frames_dropped: Gauge::default(),
            frames_stale: Gauge::default(),
            volume_held: Family::default(),
            volume_failed: Family::default(),
            volume_stalled: Family::default(),
            writes_wait: Gauge::default(),
            failovers: Counter::default(),
            failover: seconds(),
            waits: seconds(),
            longest_wait: Gauge::default(),
            guest_failures: Family::default(),
            trials: Family::default(),
            log: Family::default(),
            log_length: Gauge::default(),
            log_written: Counter::default(),
            log_commit: seconds(),
            logs_lost: Counter::default(),
            certificate_end: Family::default(),
            list_due: Family::default(),
            identity_unusable: Family::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("ninefold_role", "1 for what this keeper is for its VM", board.role.clone());
        r.register("ninefold_protection", "1 for the VM's protection state, at its primary", board.protection.clone());
        r.register("ninefold_guest", "1 for how the guest stands, at its primary", board.guest.clone());
        r.register("ninefold_term", "Newest witness term known", board.term.clone());
        r.register("ninefold_committed_epoch", "Last epoch committed in this session", board.committed.clone());
        r.register_with_unit(
            "ninefold_epoch",
            "Time the guest ran between checkpoints",
            Unit::Seconds,
            board.epoch.clone(),
        );
        r.register_with_unit("ninefold_pause", "Time the guest stood still", Unit::Seconds, board.pause.clone());
        r.register_with_unit("ninefold_pause_step", "Steps of the pause", Unit::Seconds, board.steps.clone());
        r.register_with_unit(
            "ninefold_commit",
            "Lag: from the end of the pause to the acknowledgement",
            Unit::Seconds,
            board.commit.clone(),
        );
        r.register_with_unit(
            "ninefold_tick_late",
            "How late the core's tick of 10 ms was: its own work, and waiting for a processor",
            Unit::Seconds,
            board.waits.clone(),
        );
        r.register_with_unit(
            "ninefold_tick_late_longest",
            "The latest that it has been since the keeper started",
            Unit::Seconds,
            board.longest_wait.clone(),
        );
        r.register("ninefold_dirty_pages", "Pages of 4 KiB in a checkpoint", board.dirty.clone());
        r.register_with_unit("ninefold_wire", "Sent to backups", Unit::Bytes, board.wire.clone());
        r.register("ninefold_frames_out", "Frames sent to the network", board.frames_out.clone());
        r.register("ninefold_frames_in", "Frames given to the guest", board.frames_in.clone());
        r.register("ninefold_frames_held", "Frames that wait for their commit", board.frames_held.clone());
        r.register("ninefold_frames_dropped", "Frames of the guest that were dropped", board.frames_dropped.clone());
        r.register(
            "ninefold_frames_stale",
            "Committed frames dropped because this host had been out of touch",
            board.frames_stale.clone(),
        );
        r.register_with_unit(
            "ninefold_volume_held",
            "Writes in memory that are not in this host's image yet",
            Unit::Bytes,
            board.volume_held.clone(),
        );
        r.register(
            "ninefold_volume_failed",
            "1 while this host's image cannot be written or read",
            board.volume_failed.clone(),
        );
        r.register_with_unit(
            "ninefold_volume_stalled",
            "For how long this host's disk has not answered what it was asked longest ago",
            Unit::Seconds,
            board.volume_stalled.clone(),
        );
        r.register(
            "ninefold_writes_wait",
            "1 while as much of the guest's writes is held as may be, and further ones wait",
            board.writes_wait.clone(),
        );
        r.register("ninefold_failovers", "Times this keeper took over", board.failovers.clone());
        r.register_with_unit(
            "ninefold_failover",
            "From the last sign of life of the primary to the VM running here",
            Unit::Seconds,
            board.failover.clone(),
        );
        r.register(
            "ninefold_guest_failures",
            "Times the guest's watchdog fired or its kernel panicked, and what was done",
            board.guest_failures.clone(),
        );
        r.register("ninefold_trials", "Trials of an image that have ended, and how", board.trials.clone());
        r.register("ninefold_log", "1 for the state of a non-volatile VM's log on this host", board.log.clone());
        r.register_with_unit("ninefold_log", "Length of the log", Unit::Bytes, board.log_length.clone());
        r.register_with_unit(
            "ninefold_log_written",
            "Written to the log by a primary",
            Unit::Bytes,
            board.log_written.clone(),
        );
        r.register_with_unit(
            "ninefold_log_commit",
            "From the end of a primary's pause until the epoch is on its disk",
            Unit::Seconds,
            board.log_commit.clone(),
        );
        r.register("ninefold_logs_lost", "Times a log has failed here", board.logs_lost.clone());
        r.register_with_unit(
            "ninefold_certificate_not_after_timestamp",
            "Until when this host's certificate is good, since the Unix epoch",
            Unit::Seconds,
            board.certificate_end.clone(),
        );
        r.register_with_unit(
            "ninefold_revocation_list_next_update_timestamp",
            "By when the next revocation list is due, since the Unix epoch; none without a list",
            Unit::Seconds,
            board.list_due.clone(),
        );
        r.register(
            "ninefold_identity_unusable",
            "1 while the files of this host's identity cannot be used as they are, and what was read before is used on",
            board.identity_unusable.clone(),
        );
        board.registry = registry;
        board
    }

    /// What this keeper is now.
    pub fn role(&self, role: Role, protection: Option<ProtectionState>, term: Term) {
        for (r, state) in [(Role::Standby, "standby"), (Role::Backup, "backup"), (Role::Primary, "primary")] {
            self.role.get_or_create(&StateLabel { state }).set(i64::from(r == role));
        }
        use ProtectionState::{Off, Protected, Syncing, Unprotected, Waiting};
        let names = ["off", "unprotected", "syncing", "protected", "waiting"];
        for (p, state) in [Off, Unprotected, Syncing, Protected, Waiting].into_iter().zip(names) {
            self.protection.get_or_create(&StateLabel { state }).set(i64::from(Some(p) == protection));
        }
        self.term.set(i64::try_from(term.0).unwrap_or(i64::MAX));
    }

    /// How the guest stands; None when it is not here.
    pub fn standing(&self, standing: Option<GuestState>) {
        let now = standing.map(|s| s.to_string());
        for state in ["running", "suspended", "paused", "shutdown"] {
            self.guest.get_or_create(&StateLabel { state }).set(i64::from(now.as_deref() == Some(state)));
        }
    }

    /// Totals kept elsewhere.
    pub fn counters(&self, c: &Counters, committed: Epoch) {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.frames_out, c.frames_out);
        set(&self.frames_in, c.frames_in);
        set(&self.frames_held, c.frames_held);
        set(&self.frames_dropped, c.frames_dropped);
        set(&self.frames_stale, c.frames_stale);
        set(&self.committed, committed.0);
    }

    /// How a volume is on this host.
    pub fn volume(&self, name: &VolumeName, held: usize, failed: bool, stalled: Duration) {
        let label = VolumeLabel { volume: name.to_string() };
        self.volume_held.get_or_create(&label).set(i64::try_from(held).unwrap_or(i64::MAX));
        self.volume_failed.get_or_create(&label).set(failed.into());
        self.volume_stalled.get_or_create(&label).set(stalled.as_secs_f64());
    }

    /// Whether the guest's writes wait for room.
    pub fn writes_wait(&self, wait: bool) {
        self.writes_wait.set(wait.into());
    }

    /// A checkpoint that is committed.
    pub fn checkpoint(&self, r: &CheckpointRecord) {
        let s = |us: u64| us as f64 / 1e6;
        self.epoch.observe(s(r.run_us));
        self.pause.observe(s(r.pause_us));
        self.commit.observe(s(r.commit_us));
        self.dirty.observe(r.dirty_pages as f64);
        self.wire.inc_by(r.wire_bytes);
        let steps = [
            (Step::Stop, r.stop_us),
            (Step::Scan, r.scan_us),
            (Step::Copy, r.copy_us),
            (Step::Save, r.save_us),
            (Step::Cont, r.cont_us),
        ];
        for (step, us) in steps {
            self.steps.get_or_create(&StepLabel { step }).observe(s(us));
        }
    }

    /// A tick was so late.
    pub fn waited(&self, late: Duration) {
        let late = late.as_secs_f64();
        self.waits.observe(late);
        if late > self.longest_wait.get() {
            self.longest_wait.set(late);
        }
    }

    /// This keeper took over, so long after the primary's last sign of life.
    pub fn failover(&self, took: Duration) {
        self.failovers.inc();
        self.failover.observe(took.as_secs_f64());
    }

    /// How the log of a non-volatile VM is on this host.
    pub fn log(&self, log: &LogStatus) {
        use LogState::{Copying, Off, On, Recovering};
        for (of, state) in [(Off, "off"), (Copying, "copying"), (On, "on"), (Recovering, "recovering")] {
            self.log.get_or_create(&StateLabel { state }).set(i64::from(of == log.state));
        }
        self.log_length.set(i64::try_from(log.bytes).unwrap_or(i64::MAX));
    }

    /// A primary's log has another epoch.
    pub fn logged(&self, commit_bytes: u64, commit_us: u64) {
        self.log_commit.observe(commit_us as f64 / 1e6);
        self.log_written.inc_by(commit_bytes);
    }

    /// A log that was kept has failed.
    pub fn log_lost(&self) {
        self.logs_lost.inc();
    }

    /// The guest has failed, and this is done about it.
    pub fn guest_failed(&self, failure: Failure, action: WatchdogAction) {
        let failure = match failure {
            Failure::Watchdog => "watchdog",
            Failure::Panic => "panic",
        };
        let action = match action {
            WatchdogAction::Reset => "reset",
            WatchdogAction::Dump => "dump",
            WatchdogAction::FallBack => "fall_back",
            WatchdogAction::Stop => "stop",
        };
        self.guest_failures.get_or_create(&FailureLabels { failure, action }).inc();
    }

    /// A trial has ended.
    pub fn trial(&self, outcome: TrialOutcome) {
        let outcome = match outcome {
            TrialOutcome::Committed => "committed",
            TrialOutcome::FellBack => "fell_back",
        };
        self.trials.get_or_create(&TrialLabel { outcome }).inc();
    }

    /// The certificate and the revocation lists that this host uses.
    pub fn certificate(&self, status: &CertificateStatus) {
        let seconds = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
        self.certificate_end.get_or_create(&NoLabel::new()).set(seconds(status.valid_until_s));
        match status.next_update_s {
            Some(due) => drop(self.list_due.get_or_create(&NoLabel::new()).set(seconds(due))),
            None => drop(self.list_due.remove(&NoLabel::new())),
        }
        self.identity_unusable.get_or_create(&NoLabel::new()).set(status.problem.is_some().into());
    }

    /// All of them, in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}
