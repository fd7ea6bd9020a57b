//! Carries out a plan.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ninefold_control::Request;
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::EventKind;
use ninefold_model::spec::Accel;
use ninefold_model::status::MachineStatus;
use ninefold_transport::clock::monotonic_us;
use rustix::process::{Pid, Signal, kill_process};

use super::clock::{self, ClockFigures, Span};
use super::pace::{Pace, Progress};
use super::plan::{
    Command, LARGE_MIB, Loss, MIDDLE_RANGE, Measure, Mode, PIPELINED, PauseLoad, Plan, RANGES, Stage, warm_up,
};
use super::rebind::{self, Rebind, RebindFigures};
use super::redis::Call;
use super::results::{
    Checkpoints, Comparison, Failover, Failovers, MachineDescription, Median, PauseFigures, PauseSeries, PingFigures,
    PingSeries, PolicyCell, PolicyRow, Ratios, Report, TlsCost, TlsRow, load,
};
use super::scaling::{self, ScalingRow};
use super::snapshots::{self, SnapshotRow};
use super::spread::Spread;
use super::subject::Subject;
use crate::boot::{VmOptions, redis};
use crate::config::{LabConfig, LabSecurity};
use crate::error::LabError;
use crate::ledger::{Ledger, LedgerOptions, LedgerReport};
use crate::pinger::{Pinger, Pings};
use crate::topology::{CLIENT, GUEST_IP};
use ninefold_model::series::Series;

/// From one echo to the next.
const PING_INTERVAL: Duration = Duration::from_millis(10);
/// How long a takeover may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest with very much memory may take to boot and be copied.
const LARGE_PATIENCE: Duration = Duration::from_secs(400);
/// What a guest may dirty in an epoch to count as 2,000 pages.
const ABOUT_2000: std::ops::RangeInclusive<u64> = 1800..=2200;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    pub quick: bool,
    /// Another QEMU than the first on the PATH.
    pub qemu: Option<PathBuf>,
}

/// One side of one round.
#[derive(Debug, Clone, Default)]
struct Sample {
    value: f64,
    pings: Pings,
    checkpoints: Vec<CheckpointRecord>,
    seconds: f64,
}

/// Runs the benchmarks: some minutes. Whatever it makes is gone when it returns, also with an error, and when its process
/// is killed.
///
/// # Errors
/// A lab cannot be made, its VM does not boot or does not get into a mode in time, or a measurement fails.
pub fn run(options: &Options, tell: &mut dyn FnMut(&Progress)) -> Result<Report, LabError> {
    let plan = if options.quick { Plan::quick() } else { Plan::full() };
    let mut pace = Pace::new(plan.total());
    let mut vm = VmOptions::new("bench".parse().map_err(|_| LabError::NotFound("bench".into()))?);
    vm.qemu.clone_from(&options.qemu);
    let machine = MachineDescription::here(vm.vcpus, vm.memory_mib);
    let mut run = Run {
        plan,
        vm,
        subject: None,
        plain: None,
        large: None,
        work: HashMap::new(),
        samples: HashMap::new(),
        pauses: Vec::new(),
        clock_ppm: ClockFigures::default(),
        losses: Vec::new(),
        scaling: Vec::new(),
        snapshot: Vec::new(),
        breaks: Vec::new(),
        taken_over: [0; 2],
        ledger: None,
        client: LedgerReport::default(),
        qemu: None,
    };
    for stage in plan.stages() {
        tell(&pace.at(stage.to_string()));
        run.stage(stage)?;
        pace.pass(plan.cost(stage));
    }
    tell(&pace.end());
    run.report(options.quick, machine, pace.took())
}

struct Run {
    plan: Plan,
    vm: VmOptions,
    /// The lab with mutual TLS, in which all but the cost of TLS is measured.
    subject: Option<Subject>,
    plain: Option<Subject>,
    /// With a VM of more memory.
    large: Option<Subject>,
    /// How much work a second is for each measurement, from the latest one.
    work: HashMap<(Mode, Measure), f64>,
    samples: HashMap<Stage, Vec<Sample>>,
    pauses: Vec<PauseSeries>,
    clock_ppm: ClockFigures,
    losses: Vec<Failover>,
    breaks: Vec<Rebind>,
    scaling: Vec<ScalingRow>,
    snapshot: Vec<SnapshotRow>,
    /// How often a backup that was cut off took the VM over: the small one, the large one.
    taken_over: [u64; 2],
    /// The client that writes and checks while failovers are measured.
    ledger: Option<Ledger>,
    client: LedgerReport,
    /// As it was first; a failover does not change what is reported of it.
    qemu: Option<MachineStatus>,
}

impl Run {
    fn stage(&mut self, stage: Stage) -> Result<(), LabError> {
        let time = self.plan.sample(stage);
        if !matches!(stage, Stage::Lose { .. }) {
            self.end_ledger()?;
        }
        match stage {
            Stage::Boot => {
                let subject = Subject::up(&LabConfig::new(&lab_name('b'))?, &self.vm)?;
                self.qemu = subject.status()?.machine;
                self.subject = Some(subject);
            }
            Stage::Fill => fill(self.main()?)?,
            Stage::BootLarge => {
                self.main()?.sleep()?;
                let vm = VmOptions { memory_mib: LARGE_MIB, ..self.vm.clone() };
                self.large = Some(Subject::up(&LabConfig::new(&lab_name('l'))?, &vm)?);
            }
            Stage::Rebind { large, how } => {
                let subject = if large { &mut self.large } else { &mut self.subject };
                let memory_mib = if large { LARGE_MIB } else { self.vm.memory_mib };
                let subject = subject.as_mut().ok_or_else(no_subject)?;
                let rebind = rebind::measure(subject, how, memory_mib, &mut self.taken_over[usize::from(large)])?;
                self.breaks.push(rebind);
            }
            Stage::Scaling { memory_mib, vcpus } => {
                self.large = None;
                self.main()?.sleep()?;
                let mut vm = VmOptions { memory_mib, vcpus, ..self.vm.clone() };
                vm.patience = vm.patience.max(LARGE_PATIENCE);
                self.scaling.push(scaling::measure(&LabConfig::new(&lab_name('m'))?, &vm, time)?);
            }
            Stage::Snapshots { memory_mib } => {
                self.large = None;
                self.main()?.sleep()?;
                let mut vm = VmOptions { memory_mib, ..self.vm.clone() };
                vm.patience = vm.patience.max(LARGE_PATIENCE);
                self.snapshot.extend(snapshots::measure(&LabConfig::new(&lab_name('n'))?, &vm)?);
            }
            Stage::BootPlain => {
                self.large = None;
                self.main()?.sleep()?;
                let mut config = LabConfig::new(&lab_name('p'))?;
                config.security = LabSecurity::PlainText;
                let mut plain = Subject::up(&config, &self.vm)?;
                fill(&mut plain)?;
                self.plain = Some(plain);
            }
            Stage::WarmUp { mode, measure } => drop(self.sample(false, mode, measure, time)?),
            Stage::Compare { mode, measure } | Stage::Policies { mode, measure } => {
                let sample = self.sample(false, mode, measure, time)?;
                self.samples.entry(stage).or_default().push(sample);
            }
            Stage::Security { plain, measure } => {
                let other = if plain { &mut self.subject } else { &mut self.plain };
                other.as_mut().map_or(Ok(()), Subject::sleep)?;
                let sample = self.sample(plain, Mode::Adaptive, measure, time)?;
                self.samples.entry(stage).or_default().push(sample);
            }
            Stage::Pauses { load } => self.pauses(load, time)?,
            Stage::Clock { load } => {
                let range = MIDDLE_RANGE;
                let rate = self.work.get(&(Mode::Adaptive, Measure::SetPipelined { range })).copied();
                let drift = clock::measure(self.main()?, load, Span::of(time), rate.unwrap_or_default())?;
                self.clock_ppm.set(load, drift.ppm);
            }
            Stage::Lose { how } => self.lose(how)?,
        }
        Ok(())
    }

    /// Has the client that writes check everything, while its VM still runs.
    fn end_ledger(&mut self) -> Result<(), LabError> {
        if let Some(ledger) = self.ledger.take() {
            self.client = ledger.finish()?;
        }
        Ok(())
    }

    fn main(&mut self) -> Result<&mut Subject, LabError> {
        self.subject.as_mut().ok_or_else(no_subject)
    }

    /// Takes one sample of a measure in a mode.
    fn sample(&mut self, plain: bool, mode: Mode, measure: Measure, time: Duration) -> Result<Sample, LabError> {
        let subject = if plain { &mut self.plain } else { &mut self.subject };
        let subject = subject.as_mut().ok_or_else(no_subject)?;
        subject.enter(mode)?;
        let known = self.work.get(&(mode, measure)).copied();
        let guess = known.unwrap_or_else(|| first_guess(mode, measure, &self.work));
        let call = match measure {
            Measure::SetPipelined { range } => {
                let (clients, pipeline) = PIPELINED;
                Some(Call { test: "set", clients, pipeline, range, requests: 0 })
            }
            Measure::Redis { command, clients } => {
                let test = match command {
                    Command::Get => "get",
                    Command::Set => "set",
                };
                Some(Call { test, clients, pipeline: 1, range: MIDDLE_RANGE, requests: 0 })
            }
            _ => None,
        };
        if let Some(call) = call {
            // Protection has just been switched: what a VM costs that has been protected for a second is of interest.
            call.lasting(warm_up(time), guess).run(&subject.lab)?;
        }
        subject.new_checkpoints()?;
        let begin = Instant::now();
        let mut pings = Pings::default();
        let value = match measure {
            Measure::SetPipelined { .. } | Measure::Redis { .. } => match call {
                Some(call) => call.lasting(time, guess).run(&subject.lab)?,
                None => 0.0,
            },
            Measure::Cpu => {
                let iterations = match known {
                    // Twice, because the first time warms up what the guest computes with.
                    None => (0..2).try_fold(0, |_, _| subject.workload.iterations_in(time / 2))? * 2,
                    Some(rate) => (rate * time.as_secs_f64()) as u64,
                };
                subject.workload.cpu(iterations)?
            }
            Measure::Memory { mbps } => {
                subject.workload.dirty(mbps)?;
                let rate = subject.workload.dirty_rate(time)?;
                subject.workload.stop()?;
                rate
            }
            Measure::Ping => {
                let each = (1e6 / guess.max(1.0)).max(PING_INTERVAL.as_micros() as f64);
                let count = (time.as_micros() as f64 / each).clamp(10.0, 1000.0) as u16;
                pings = Pinger { count, interval: PING_INTERVAL, ..Pinger::default() }
                    .run(&subject.lab.netns(CLIENT)?, guest()?)?;
                pings.rtt_us.summary().p50 as f64
            }
        };
        let seconds = begin.elapsed().as_secs_f64();
        let checkpoints = subject.new_checkpoints()?;
        self.work.insert((mode, measure), if measure == Measure::Ping { 1e6 / value.max(1.0) } else { value });
        Ok(Sample { value, pings, checkpoints, seconds })
    }

    /// Takes pauses apart at fixed epochs.
    fn pauses(&mut self, load: PauseLoad, time: Duration) -> Result<(), LabError> {
        let subject = self.main()?;
        let (mut ms, mut mbps) = (25, 328);
        subject.enter(Mode::Fixed(ms))?;
        if load == PauseLoad::Dirty2000 {
            // 328 MB/s are 2,000 pages in 25 ms. A guest that cannot write so fast gets longer epochs.
            for attempt in 0..6 {
                subject.workload.dirty(mbps)?;
                subject.new_checkpoints()?;
                std::thread::sleep(Duration::from_millis(600));
                let pages = Checkpoints::of(&subject.new_checkpoints()?, 1.0).dirty_pages.p50;
                if ABOUT_2000.contains(&pages) {
                    break;
                }
                let factor = 2000.0 / pages.max(1) as f64;
                if attempt < 3 {
                    mbps = (f64::from(mbps) * factor).clamp(20.0, 2000.0) as u32;
                } else {
                    ms = (f64::from(ms) * factor).round().clamp(2.0, 200.0) as u32;
                    subject.enter(Mode::Fixed(ms))?;
                }
            }
        }
        subject.new_checkpoints()?;
        let begin = Instant::now();
        std::thread::sleep(time);
        let all = subject.new_checkpoints()?;
        let checkpoints = Checkpoints::of(&all, begin.elapsed().as_secs_f64());
        subject.workload.stop()?;
        let dirtied_mb_per_s = if load == PauseLoad::Dirty2000 { mbps } else { 0 };
        self.pauses.push(PauseSeries { load, epoch_ms: ms, dirtied_mb_per_s, checkpoints });
        Ok(())
    }

    /// Takes the primary away, while a client writes and checks, and waits until the VM is protected again.
    fn lose(&mut self, how: Loss) -> Result<(), LabError> {
        let subject = self.subject.as_mut().ok_or_else(no_subject)?;
        subject.enter(Mode::Adaptive)?;
        let ledger = match &mut self.ledger {
            Some(ledger) => ledger,
            none => none.insert(Ledger::start(Some(&subject.lab.netns(CLIENT)?), redis(), &LedgerOptions::default())?),
        };
        let answered = |ledger: &Ledger| ledger.wait_acks(50, Instant::now() + PATIENCE);
        if !answered(ledger) {
            return Err(subject.timeout("answer to the client that writes"));
        }
        let (from, to) = (subject.primary.clone(), subject.other());
        let pid = subject.status()?.machine.and_then(|m| Pid::from_raw(m.pid as i32));
        let mark = subject.vm.events.mark();
        let (begin, begin_us) = (Instant::now(), monotonic_us());
        match (how, pid) {
            (Loss::QemuKilled, Some(pid)) => kill_process(pid, Signal::KILL)
                .map_err(|e| crate::error::io_at(format!("kill QEMU on host {from}"))(e))?,
            (Loss::QemuKilled, None) => return Err(subject.timeout("QEMU to kill")),
            (Loss::HostFrozen, _) => subject.lab.freeze(&from)?,
            (Loss::Switchover, _) => subject.lab.ask(&from, &Request::Switchover)?,
        }
        let deadline = Instant::now() + PATIENCE;
        let took = subject
            .vm
            .events
            .wait_for(mark, deadline, |e| matches!(e.kind, EventKind::TookOver { .. }) && e.host.as_str() == to);
        let Some((took_us, EventKind::TookOver { phases, .. })) = took.map(|e| (e.monotonic_us, e.kind)) else {
            return Err(subject.timeout("takeover"));
        };
        subject.moved_to(&to);
        if !answered(ledger) {
            return Err(subject.timeout("answer to the client that writes"));
        }
        let client_gap_ms = ledger.gap_since(begin).as_millis() as u64;
        if how == Loss::HostFrozen {
            subject.lab.thaw(&from)?;
        }
        subject.enter(Mode::Adaptive)?;
        self.losses.push(Failover {
            how,
            total_us: took_us.saturating_sub(begin_us),
            phases,
            client_gap_ms,
            reprotected_ms: begin.elapsed().as_millis() as u64,
        });
        Ok(())
    }

    fn report(mut self, quick: bool, mut machine: MachineDescription, took: Duration) -> Result<Report, LabError> {
        machine.load_after = load();
        self.end_ledger()?;
        let qemu = self.qemu.take();
        let comparisons: Vec<_> = Measure::ALL.iter().map(|m| self.comparison(*m)).collect();
        let ratio =
            |measure: Measure| comparisons.iter().find(|c| c.measure == measure).map_or(0.0, |c| c.ratio.median);
        let set = RANGES.map(|range| ratio(Measure::SetPipelined { range }));
        let ratios = Ratios {
            redis_set_pipelined: Spread::of(set.to_vec()).median,
            redis_set: ratio(Measure::Redis { command: Command::Set, clients: 50 }),
            redis_get: ratio(Measure::Redis { command: Command::Get, clients: 50 }),
            cpu: ratio(Measure::Cpu),
            memory: ratio(Measure::Memory { mbps: 0 }),
        };
        let pings = [Mode::Unprotected, Mode::Adaptive].map(|mode| self.pings(mode));
        let median = |load: PauseLoad| {
            let found = self.pauses.iter().find(|p| p.load == load);
            found
                .map_or_else(Median::default, |p| Median { p50: p.checkpoints.pause.p50, p99: p.checkpoints.pause.p99 })
        };
        let pause_us = PauseFigures { idle: median(PauseLoad::Idle), dirty_2000: median(PauseLoad::Dirty2000) };
        let policies = Mode::ALL.map(|mode| self.policy(mode)).to_vec();
        let tls = self.plain.is_some().then(|| self.tls());
        let syncs = self.main()?.syncs();
        let takeovers = self.main()?.takeovers();
        let unplanned_takeovers =
            (takeovers.saturating_sub(self.losses.len()) as u64).saturating_sub(self.taken_over[0]);
        let failovers = Failovers::of(self.losses, self.client);
        Ok(Report {
            ratios,
            ping_us: PingFigures {
                unprotected_p50: pings[0].rtt_us.p50,
                protected_p50: pings[1].rtt_us.p50,
                protected_p99: pings[1].rtt_us.p99,
            },
            pause_us,
            clock_ppm: self.clock_ppm,
            failover_ms: failovers.killed_ms,
            rebind_ms: RebindFigures::of(&self.breaks),
            scaling: self.scaling,
            snapshot: self.snapshot,
            breaks: self.breaks,
            taken_over_in_breaks: self.taken_over[0] + self.taken_over[1],
            accel: qemu.as_ref().map_or(Accel::Tcg, |m| m.accel),
            qemu: qemu.as_ref().map_or_else(String::new, |m| m.qemu.clone()),
            accel_reason: qemu.map_or_else(String::new, |m| m.accel_reason),
            machine,
            plan: self.plan,
            quick,
            took_s: took.as_secs(),
            comparisons,
            pings: pings.to_vec(),
            policies,
            pauses: self.pauses,
            failovers,
            unplanned_takeovers,
            sync_mb_per_s: Spread::of(syncs.iter().map(super::subject::Sync::rate).collect()),
            syncs,
            tls,
        })
    }

    fn of(&self, stage: Stage) -> &[Sample] {
        self.samples.get(&stage).map_or(&[], Vec::as_slice)
    }

    fn comparison(&self, measure: Measure) -> Comparison {
        let side = |mode| self.of(Stage::Compare { mode, measure });
        let (unprotected, protected) = (values(side(Mode::Unprotected)), values(side(Mode::Adaptive)));
        Comparison {
            measure,
            name: measure.to_string(),
            unit: measure.unit().to_owned(),
            ratio: Spread::ratios(&protected, &unprotected),
            unprotected: Spread::of(unprotected),
            protected: Spread::of(protected),
            checkpoints: checkpoints(side(Mode::Adaptive)),
        }
    }

    fn pings(&self, mode: Mode) -> PingSeries {
        let all = self.of(Stage::Compare { mode, measure: Measure::Ping });
        let series: Series = all.iter().flat_map(|s| s.pings.rtt_us.values().iter().copied()).collect();
        PingSeries {
            mode,
            rtt_us: series.summary(),
            lost: all.iter().map(|s| s.pings.lost).sum(),
            all_us: series.values().to_vec(),
        }
    }

    fn policy(&self, mode: Mode) -> PolicyRow {
        let cells = Measure::OF_POLICIES.map(|measure| {
            let of = |mode| values(self.of(Stage::Policies { mode, measure }));
            PolicyCell {
                measure,
                name: measure.to_string(),
                unit: measure.unit().to_owned(),
                ratio: Spread::ratios(&of(mode), &of(Mode::Unprotected)),
                value: Spread::of(of(mode)),
                checkpoints: checkpoints(self.of(Stage::Policies { mode, measure })),
            }
        });
        PolicyRow { mode, cells: cells.to_vec() }
    }

    fn tls(&self) -> TlsCost {
        let rows = Measure::OF_SECURITY.map(|measure| {
            let side = |plain| self.of(Stage::Security { plain, measure });
            let (plain, tls) = (values(side(true)), values(side(false)));
            TlsRow {
                measure,
                name: measure.to_string(),
                unit: measure.unit().to_owned(),
                ratio: Spread::ratios(&tls, &plain),
                plain: Spread::of(plain),
                tls: Spread::of(tls),
                plain_checkpoints: checkpoints(side(true)),
                tls_checkpoints: checkpoints(side(false)),
            }
        });
        let rates = |subject: &Option<Subject>| {
            let syncs = subject.iter().flat_map(Subject::syncs).collect::<Vec<_>>();
            Spread::of(syncs.iter().map(super::subject::Sync::rate).collect())
        };
        TlsCost {
            rows: rows.to_vec(),
            sync_mb_per_s_tls: rates(&self.subject),
            sync_mb_per_s_plain: rates(&self.plain),
        }
    }
}

fn values(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|s| s.value).collect()
}

fn checkpoints(samples: &[Sample]) -> Checkpoints {
    let all: Vec<_> = samples.iter().flat_map(|s| s.checkpoints.iter().copied()).collect();
    Checkpoints::of(&all, samples.iter().map(|s| s.seconds).sum())
}

fn guest() -> Result<Ipv4Addr, LabError> {
    match GUEST_IP {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(LabError::NotFound(GUEST_IP.to_string())),
    }
}

fn no_subject() -> LabError {
    LabError::NotFound("bench".into())
}

/// At most 8 characters, and nobody else's: process numbers have 22 bits.
pub(super) fn lab_name(letter: char) -> String {
    format!("{letter}{:x}", std::process::id())
}

/// Every key is there before the first round: each side of each round then overwrites.
fn fill(subject: &mut Subject) -> Result<(), LabError> {
    subject.enter(Mode::Unprotected)?;
    let (clients, pipeline) = PIPELINED;
    for range in RANGES {
        let call = Call { test: "set", clients, pipeline, range, requests: u64::from(range) * 2 };
        call.run(&subject.lab)?;
    }
    Ok(())
}

/// Requests a second before anything is known: too few rather than too many. A held answer waits for about an epoch.
fn first_guess(mode: Mode, measure: Measure, work: &HashMap<(Mode, Measure), f64>) -> f64 {
    let adaptive = work.get(&(Mode::Adaptive, measure)).copied();
    let epochs = match mode {
        Mode::Unprotected => return adaptive.unwrap_or(1000.0),
        Mode::Adaptive => 100.0,
        Mode::Fixed(ms) => 1000.0 / f64::from(ms),
    };
    let in_flight = match measure {
        Measure::SetPipelined { .. } => f64::from(PIPELINED.0) * f64::from(PIPELINED.1),
        Measure::Redis { clients, .. } => f64::from(clients),
        Measure::Cpu | Measure::Memory { .. } | Measure::Ping => 1.0,
    };
    let bound = epochs * in_flight / 2.0;
    adaptive.map_or(bound, |rate| rate.min(bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_rather_too_low() {
        let set = Measure::Redis { command: Command::Set, clients: 1 };
        let mut work = HashMap::new();
        assert_eq!(first_guess(Mode::Adaptive, set, &work), 50.0);
        work.insert((Mode::Adaptive, set), 400.0);
        assert_eq!(first_guess(Mode::Fixed(100), set, &work), 5.0);
        assert_eq!(first_guess(Mode::Unprotected, set, &work), 400.0);
    }

    #[test]
    fn names_fit() {
        assert!(lab_name('b').len() <= 8);
    }
}
