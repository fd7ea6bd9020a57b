//! What both acts share: a lab with a protected VM in it, failovers under the eyes of a client and an observer, and the
//! account of it.

use std::time::{Duration, Instant};

use ninefold_model::event::{Event, EventKind, FailoverPhases};
use ninefold_model::status::MachineStatus;

use super::boot::{boot, first_copy};
use super::fault::Fault;
use super::measure::Checkpoints;
use super::report::{ActReport, PauseReport};
use super::{Audience, Step};
use crate::boot::{BootedVm, VmOptions};
use crate::config::{LabConfig, LabSecurity};
use crate::error::LabError;
use crate::lab::Lab;
use crate::ledger::Pulse;
use crate::observer::Observer;

/// How long anything may take before the demo is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a lab for an act and takes it down again, also when the act fails.
pub(super) fn in_lab<T>(
    config: &LabConfig,
    audience: &mut dyn Audience,
    act: impl FnOnce(&Lab, &mut dyn Audience) -> Result<T, LabError>,
) -> Result<T, LabError> {
    let begin = Instant::now();
    let lab = Lab::up(config)?;
    let tls = config.security == LabSecurity::MutualTls;
    audience.hear(Step::LabUp { lab: lab.name().to_owned(), tls, disks: config.disks, took: begin.elapsed() });
    let done = act(&lab, audience)?;
    let leaving = Instant::now();
    lab.down()?;
    audience.hear(Step::LabDown { took: leaving.elapsed() });
    Ok(done)
}

/// A VM that is being shown.
pub(super) struct Show<'a> {
    pub lab: &'a Lab,
    pub booted: BootedVm,
    pub primary: String,
    pub backup: String,
    pub machine: MachineStatus,
    pub report: ActReport,
    /// Acknowledgements that the client must have got before a fault, and again after it.
    answers: u64,
    observer: Observer,
    checkpoints: Checkpoints,
}

/// What a failover came to, beside what is in the report.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reprotected {
    /// What the resync sent of the volumes, bytes.
    pub volume_bytes: u64,
}

impl<'a> Show<'a> {
    /// Boots the VM on the lab's first host and waits until it is protected.
    pub fn begin(lab: &'a Lab, vm: &VmOptions, answers: u64, audience: &mut dyn Audience) -> Result<Self, LabError> {
        let (primary, backup) = hosts(lab)?;
        let booted = boot(lab, &primary, vm, |p| audience.hear(Step::Booting(p)))?;
        let status = lab.keeper(&primary)?.status().map_err(|e| failed(&primary, &e))?;
        let machine = status.machine.clone().ok_or_else(|| failed(&primary, &"it has no machine"))?;
        let sync = first_copy(&booted).unwrap_or_default();
        audience.hear(Step::Protected { status: Box::new(status), guest: vm.guest, boot: booted.boot, sync });
        let observer = Observer::start(lab, vm.mac)?;
        let report = ActReport {
            path: vec![primary.clone()],
            boot_ms: ms(booted.boot),
            sync_ms: ms(sync),
            ..ActReport::default()
        };
        let checkpoints = Checkpoints::default();
        Ok(Self { lab, booted, primary, backup, machine, report, answers, observer, checkpoints })
    }

    /// Takes the primary away so many times, in turns, and waits each time until the VM is protected again.
    pub fn failovers(
        &mut self,
        count: u32,
        pulse: &Pulse,
        audience: &mut dyn Audience,
    ) -> Result<Vec<Reprotected>, LabError> {
        let mut all = Vec::new();
        for number in 0..count {
            self.answers(pulse)?;
            audience.hear(Step::Writing { acked: pulse.acked() });
            let fault = Fault::of(number);
            let (primary, backup) = (self.primary.clone(), self.backup.clone());
            audience.hear(Step::Fault { number: number + 1, of: count, fault, primary, backup });
            all.push(self.failover(fault, pulse, audience)?);
        }
        self.answers(pulse)?;
        Ok(all)
    }

    fn failover(&mut self, fault: Fault, pulse: &Pulse, audience: &mut dyn Audience) -> Result<Reprotected, LabError> {
        // What the keeper has measured dies with it.
        self.checkpoints.collect(self.lab, &self.primary);
        let mark = self.booted.events.mark();
        let begin = Instant::now();
        fault.inject(self.lab, &self.primary)?;
        let by = self.backup.clone();
        let took_over =
            self.event(mark, "take-over", |e| e.host.as_str() == by && matches!(e.kind, EventKind::TookOver { .. }))?;
        let EventKind::TookOver { epoch, phases, .. } = took_over.kind else {
            return Err(failed(&by, &"an event changed its kind"));
        };
        self.answers(pulse)?;
        let gap = pulse.gap_since(begin);
        self.report.epochs += epoch.0;
        self.report.failover(fault, &by, gap, phases);
        audience.hear(Step::TookOver { by: by.clone(), phases, gap, acked: pulse.acked() });

        if fault.repair(self.lab, &self.primary)? {
            audience.hear(Step::Restarted { host: self.primary.clone(), fault });
        }
        std::mem::swap(&mut self.primary, &mut self.backup);
        // A host whose keeper lives on needs nobody.
        let reprotected = self.reprotected(mark, begin, audience)?;
        self.report.reprotect_ms.push(ms(begin.elapsed()));
        self.checkpoints.collect(self.lab, &self.backup);
        Ok(reprotected)
    }

    /// Waits until the VM is protected on the host where it runs now.
    pub fn reprotected(
        &self,
        mark: usize,
        since: Instant,
        audience: &mut dyn Audience,
    ) -> Result<Reprotected, LabError> {
        let protected = self.event(mark, "protection", |e| {
            e.host.as_str() == self.primary && matches!(e.kind, EventKind::Protected { .. })
        })?;
        let (sync, volume_bytes) = match protected.kind {
            EventKind::Protected { sync_ms, volume_bytes, .. } => (Duration::from_millis(sync_ms), volume_bytes),
            _ => (Duration::ZERO, 0),
        };
        let (primary, backup) = (self.primary.clone(), self.backup.clone());
        audience.hear(Step::Reprotected { primary, backup, since: since.elapsed(), sync, volume_bytes });
        Ok(Reprotected { volume_bytes })
    }

    /// Waits for an event at or after `mark`.
    pub fn event(&self, mark: usize, what: &str, wanted: impl FnMut(&Event) -> bool) -> Result<Event, LabError> {
        let found = self.booted.events.wait_for(mark, Instant::now() + PATIENCE, wanted);
        found.ok_or_else(|| self.timeout(what))
    }

    /// Waits until the client has further answers.
    pub fn answers(&self, pulse: &Pulse) -> Result<(), LabError> {
        match pulse.wait_acks(self.answers, Instant::now() + PATIENCE) {
            true => Ok(()),
            // A broken connection is a result, not a reason to end: the report will say it.
            false if pulse.resets() > 0 => Ok(()),
            false => Err(self.timeout("answers to the client")),
        }
    }

    pub fn timeout(&self, what: &str) -> LabError {
        let events = self.booted.events.all();
        let events: String = events.iter().map(|e| format!("\n  {}: {:?}", e.host, e.kind)).collect();
        LabError::Timeout { what: what.to_owned(), after: PATIENCE, detail: events + &self.lab.logs_for_error() }
    }

    /// The VM runs on this host now.
    pub fn now_on(&mut self, host: &str) {
        if self.primary != host {
            std::mem::swap(&mut self.primary, &mut self.backup);
        }
    }

    /// Counts what the running session has done, before it ends.
    pub fn collect(&mut self) -> Result<(), LabError> {
        let status = self.lab.keeper(&self.primary)?.status().map_err(|e| failed(&self.primary, &e))?;
        self.report.epochs += status.committed.0;
        self.checkpoints.collect(self.lab, &self.primary);
        Ok(())
    }

    /// Closes the account.
    pub fn end(mut self) -> ActReport {
        let pauses = self.checkpoints.pauses();
        self.report.pause_us = PauseReport { count: pauses.count, p50: pauses.p50, p99: pauses.p99, max: pauses.max };
        let seen = self.observer.report();
        self.report.speakers_overlapped = seen.overlaps(&self.booted.events.takeovers()).len() as u64;
        self.report.frames_unobserved = seen.missed;
        self.report
    }
}

impl ActReport {
    fn failover(&mut self, fault: Fault, by: &str, gap: Duration, phases: FailoverPhases) {
        self.failovers += 1;
        self.faults.push(fault);
        self.path.push(by.to_owned());
        self.client_gap_ms.push(ms(gap));
        for (series, us) in [
            (&mut self.detect_ms, phases.detect_us),
            (&mut self.arbitrate_ms, phases.arbitrate_us),
            (&mut self.load_ms, phases.load_us),
            (&mut self.resume_ms, phases.resume_us),
        ] {
            series.push(us as f64 / 1000.0);
        }
    }
}

/// The first two hosts: where the VM boots, and its backup.
fn hosts(lab: &Lab) -> Result<(String, String), LabError> {
    match &lab.topology().hosts[..] {
        [primary, backup, ..] => Ok((primary.to_string(), backup.to_string())),
        _ => Err(LabError::Name { name: lab.name().to_owned(), reason: "a demo needs two hosts".into() }),
    }
}

pub(super) fn failed(host: &str, what: &dyn std::fmt::Display) -> LabError {
    LabError::Host { host: host.to_owned(), what: what.to_string() }
}

pub(super) fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
