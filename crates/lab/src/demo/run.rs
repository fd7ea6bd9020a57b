//! The demo's sequence.

use std::time::{Duration, Instant};

use ninefold_model::VmName;
use ninefold_model::event::{Event, EventKind};

use super::boot::{boot, first_copy};
use super::fault::Fault;
use super::measure::Checkpoints;
use super::report::{DemoReport, PauseReport};
use super::{Audience, Step};
use crate::boot::{BootedVm, VmOptions, redis};
use crate::config::{LabConfig, LabSecurity};
use crate::error::LabError;
use crate::lab::Lab;
use crate::ledger::{Ledger, LedgerOptions};
use crate::observer::Observer;
use crate::topology::CLIENT;

/// Answers that the client must have got before a fault, and again after it.
const ANSWERS: u64 = 300;
/// How long anything may take before the demo is given up.
const PATIENCE: Duration = Duration::from_secs(45);

/// What a demo shall show.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The lab that is made for it.
    pub lab: LabConfig,
    pub vm: VmOptions,
    /// How many times the primary is lost; the faults take turns.
    pub failovers: u32,
}

impl DemoOptions {
    /// Three failovers of the VM `vm` in a lab of this name.
    ///
    /// # Errors
    /// When it cannot be a lab's name.
    pub fn new(lab: &str) -> Result<Self, LabError> {
        let name: VmName = "vm"
            .parse()
            .map_err(|e: ninefold_model::InvalidName| LabError::Name { name: "vm".into(), reason: e.to_string() })?;
        Ok(Self { lab: LabConfig::new(lab)?, vm: VmOptions::new(name), failovers: 3 })
    }
}

/// Runs a demo. The lab is gone when this returns, also with an error.
///
/// # Errors
/// When something did not come to its end: no take-over, no answers, no new backup. What was lost or broken is no error:
/// the report says it ([`DemoReport::failures`]).
pub fn run(options: &DemoOptions, audience: &mut dyn Audience) -> Result<DemoReport, LabError> {
    let begin = Instant::now();
    let lab = Lab::up(&options.lab)?;
    let tls = options.lab.security == LabSecurity::MutualTls;
    audience.hear(Step::LabUp { lab: lab.name().to_owned(), tls, took: begin.elapsed() });
    let mut report = in_lab(&lab, options, tls, audience)?;
    let leaving = Instant::now();
    lab.down()?;
    audience.hear(Step::LabDown { took: leaving.elapsed() });
    report.total_ms = ms(begin.elapsed());
    Ok(report)
}

fn in_lab(lab: &Lab, options: &DemoOptions, tls: bool, audience: &mut dyn Audience) -> Result<DemoReport, LabError> {
    let (mut primary, mut backup) = hosts(lab)?;
    let booted = boot(lab, &primary, &options.vm, |p| audience.hear(Step::Booting(p)))?;
    let status = lab.keeper(&primary)?.status().map_err(|e| failed(&primary, &e))?;
    let machine = status.machine.clone().ok_or_else(|| failed(&primary, &"it has no machine"))?;
    let sync = first_copy(&booted).unwrap_or_default();
    audience.hear(Step::Protected { status: Box::new(status), boot: booted.boot, sync });

    let observer = Observer::start(lab, options.vm.mac)?;
    let ledger = Ledger::start(Some(&lab.netns(CLIENT)?), redis(), &LedgerOptions::default())?;
    let mut report = DemoReport {
        failovers: 0,
        faults: Vec::new(),
        path: vec![primary.clone()],
        acked_writes: 0,
        acked_writes_lost: 0,
        connections_reset: 0,
        client_gap_ms: Vec::new(),
        detect_ms: Vec::new(),
        arbitrate_ms: Vec::new(),
        load_ms: Vec::new(),
        resume_ms: Vec::new(),
        reprotect_ms: Vec::new(),
        epochs: 0,
        pause_us: PauseReport::default(),
        speakers_overlapped: 0,
        frames_unobserved: 0,
        boot_ms: ms(booted.boot),
        sync_ms: ms(sync),
        total_ms: 0.0,
        accel: machine.accel,
        qemu: machine.qemu,
        tls,
        vcpus: options.vm.vcpus,
        memory_mib: options.vm.memory_mib,
        complaints: Vec::new(),
    };
    let mut checkpoints = Checkpoints::default();
    for number in 0..options.failovers {
        answers(&ledger, lab, &booted)?;
        audience.hear(Step::Writing { acked: ledger.acked() });
        let show = Show { lab, booted: &booted, ledger: &ledger, number: number + 1, of: options.failovers };
        show.failover(Fault::of(number), &primary, &backup, &mut checkpoints, &mut report, audience)?;
        std::mem::swap(&mut primary, &mut backup);
    }
    answers(&ledger, lab, &booted)?;
    // The last session's epochs; those before were counted when they ended.
    report.epochs += lab.keeper(&primary)?.status().map_err(|e| failed(&primary, &e))?.committed.0;
    checkpoints.collect(lab, &primary);
    let pauses = checkpoints.pauses();
    report.pause_us = PauseReport { count: pauses.count, p50: pauses.p50, p99: pauses.p99, max: pauses.max };

    let written = ledger.finish()?;
    let seen = observer.report();
    report.acked_writes = written.acked;
    report.acked_writes_lost = written.lost + written.repeated;
    report.connections_reset = written.resets;
    report.complaints = written.complaints;
    report.speakers_overlapped = seen.overlaps(&booted.events.takeovers()).len() as u64;
    report.frames_unobserved = seen.missed;
    let (lost, resets) = (report.acked_writes_lost, report.connections_reset);
    audience.hear(Step::Verified { acked: report.acked_writes, lost, resets });
    Ok(report)
}

/// One failover's surroundings.
struct Show<'a> {
    lab: &'a Lab,
    booted: &'a BootedVm,
    ledger: &'a Ledger,
    number: u32,
    of: u32,
}

impl Show<'_> {
    fn failover(
        &self,
        fault: Fault,
        primary: &str,
        backup: &str,
        checkpoints: &mut Checkpoints,
        report: &mut DemoReport,
        audience: &mut dyn Audience,
    ) -> Result<(), LabError> {
        let Self { lab, booted, ledger, number, of } = *self;
        let (primary_name, backup_name) = (primary.to_owned(), backup.to_owned());
        audience.hear(Step::Fault { number, of, fault, primary: primary_name.clone(), backup: backup_name.clone() });
        // What the keeper has measured dies with it.
        checkpoints.collect(lab, primary);
        let mark = booted.events.mark();
        let begin = Instant::now();
        fault.inject(lab, primary)?;
        let took_over = self
            .event(mark, "take-over", |e| e.host.as_str() == backup && matches!(e.kind, EventKind::TookOver { .. }))?;
        let EventKind::TookOver { epoch, phases, .. } = took_over.kind else {
            return Err(failed(backup, &"an event changed its kind"));
        };
        answers(ledger, lab, booted)?;
        let gap = ledger.gap_since(begin);
        report.failovers += 1;
        report.faults.push(fault);
        report.path.push(backup_name.clone());
        report.epochs += epoch.0;
        report.client_gap_ms.push(ms(gap));
        for (series, us) in [
            (&mut report.detect_ms, phases.detect_us),
            (&mut report.arbitrate_ms, phases.arbitrate_us),
            (&mut report.load_ms, phases.load_us),
            (&mut report.resume_ms, phases.resume_us),
        ] {
            series.push(us as f64 / 1000.0);
        }
        audience.hear(Step::TookOver { number, by: backup_name.clone(), phases, gap, acked: ledger.acked() });

        if fault.repair(lab, primary)? {
            audience.hear(Step::Restarted { number, host: primary_name.clone(), fault });
        }
        // A host whose keeper lives on needs nobody.
        let protected = self.event(mark, "protection after the take-over", |e| {
            e.host.as_str() == backup && matches!(e.kind, EventKind::Protected { .. })
        })?;
        let since_fault = begin.elapsed();
        report.reprotect_ms.push(ms(since_fault));
        let sync = match protected.kind {
            EventKind::Protected { sync_ms, .. } => Duration::from_millis(sync_ms),
            _ => Duration::ZERO,
        };
        checkpoints.collect(lab, primary);
        audience.hear(Step::Reprotected { number, primary: backup_name, backup: primary_name, since_fault, sync });
        Ok(())
    }

    fn event(&self, mark: usize, what: &str, wanted: impl FnMut(&Event) -> bool) -> Result<Event, LabError> {
        let found = self.booted.events.wait_for(mark, Instant::now() + PATIENCE, wanted);
        found.ok_or_else(|| timeout(self.lab, self.booted, what))
    }
}

/// Waits until the client has further answers.
fn answers(ledger: &Ledger, lab: &Lab, booted: &BootedVm) -> Result<(), LabError> {
    match ledger.wait_acks(ANSWERS, Instant::now() + PATIENCE) {
        true => Ok(()),
        // A broken connection is a result, not a reason to end: the report will say it.
        false if ledger.resets() > 0 => Ok(()),
        false => Err(timeout(lab, booted, "answers to the client")),
    }
}

fn timeout(lab: &Lab, booted: &BootedVm, what: &str) -> LabError {
    let events: String = booted.events.all().iter().map(|e| format!("\n  {}: {:?}", e.host, e.kind)).collect();
    LabError::Timeout { what: what.to_owned(), after: PATIENCE, detail: events + &lab.logs_for_error() }
}

/// The first two hosts: where the VM boots, and its backup.
fn hosts(lab: &Lab) -> Result<(String, String), LabError> {
    match &lab.topology().hosts[..] {
        [primary, backup, ..] => Ok((primary.to_string(), backup.to_string())),
        _ => Err(LabError::Name { name: lab.name().to_owned(), reason: "a demo needs two hosts".into() }),
    }
}

fn failed(host: &str, what: &dyn std::fmt::Display) -> LabError {
    LabError::Host { host: host.to_owned(), what: what.to_string() }
}

fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
