//! Carries out a plan.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ninefold_control::{FreezeChoice, Request};
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::{EventKind, SnapshotFigures};
use ninefold_model::spec::{Accel, Acknowledge, VolumeSpec};
use ninefold_model::status::MachineStatus;
use ninefold_model::{SnapshotName, VmName, VolumeName};
use ninefold_volume::pool::{FileFormat, Import, Kind};
use ninefold_volume::{Format, Pool, Tools, VolumeError};

use super::pgbench;
use super::plan::{CHANGED, Job, Stage, VolumePlan};
use super::results::{CloneResult, Resync, SnapshotResult, VolumeComparison, VolumeRatios, VolumeReport};
use crate::bench::pace::{Pace, Progress};
use crate::bench::plan::Mode;
use crate::bench::results::{Checkpoints, MachineDescription, load};
use crate::bench::runner::{Options, lab_name};
use crate::bench::spread::Spread;
use crate::bench::subject::Subject;
use crate::boot::VmOptions;
use crate::config::LabConfig;
use crate::disks;
use crate::error::{LabError, io_at};
use crate::guest::Guest;
use crate::ledger::sql;
use crate::topology::CLIENT;

/// The raw volume.
const SCRATCH: &str = "scratch";
/// Its size beside the database, bytes.
const SCRATCH_BYTES: u64 = 256 << 20;
/// Clients of the database, and requests at a time.
const CLIENTS: u32 = 4;
/// The same work for a moment before it counts.
const WARM_UP: Duration = Duration::from_millis(400);
/// For a VM to be protected again.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the benchmark of volumes: some minutes. Whatever it makes is gone when it returns, also with an error, and when its
/// process is killed.
///
/// # Errors
/// When something does not come to its end.
pub fn run(options: &Options, tell: &mut dyn FnMut(&Progress)) -> Result<VolumeReport, LabError> {
    let plan = if options.quick { VolumePlan::quick() } else { VolumePlan::full() };
    let mut vm = VmOptions::postgres(vm_name()?, Acknowledge::Memory)?;
    vm.qemu.clone_from(&options.qemu);
    vm.volumes.push(scratch(SCRATCH_BYTES)?);
    let machine = MachineDescription::here(vm.vcpus, vm.memory_mib);
    let mut run = Run {
        plan,
        vm,
        subject: None,
        samples: HashMap::new(),
        snapshots: Vec::new(),
        clones: CloneResult::default(),
        resyncs: Vec::new(),
        qemu: None,
        unplanned_takeovers: 0,
    };
    let mut pace = Pace::new(plan.total());
    for stage in plan.stages() {
        tell(&pace.at(stage.to_string()));
        run.stage(stage)?;
        pace.pass(plan.cost(stage));
    }
    tell(&pace.end());
    run.report(options.quick, machine, pace.took())
}

/// One side of one round.
#[derive(Debug, Clone, Default)]
struct Sample {
    value: f64,
    checkpoints: Vec<CheckpointRecord>,
    seconds: f64,
}

struct Run {
    plan: VolumePlan,
    vm: VmOptions,
    subject: Option<Subject>,
    samples: HashMap<(Mode, Job), Vec<Sample>>,
    /// Whether whole, and what it came to.
    snapshots: Vec<(bool, SnapshotFigures)>,
    clones: CloneResult,
    /// Percent, milliseconds, bytes of the volume and of the memory.
    resyncs: Vec<(u32, u64, u64, u64)>,
    qemu: Option<MachineStatus>,
    unplanned_takeovers: u64,
}

impl Run {
    fn stage(&mut self, stage: Stage) -> Result<(), LabError> {
        match stage {
            Stage::Boot => {
                let subject = up('v', &self.vm)?;
                self.qemu = subject.status()?.machine;
                self.subject = Some(subject);
            }
            Stage::Fill => {
                let scale = self.plan.pgbench_scale;
                let subject = self.subject()?;
                subject.enter(Mode::Unprotected)?;
                pgbench::fill(&subject.lab, scale)?;
                subject.workload.rewrite(SCRATCH, 100)?;
            }
            Stage::Compare { mode, job } => {
                let sample = self.sample(mode, job)?;
                self.samples.entry((mode, job)).or_default().push(sample);
            }
            Stage::Snapshot { whole } => {
                let figures = self.snapshot(whole)?;
                self.snapshots.push((whole, figures));
            }
            Stage::Clone => self.clones = self.clone_image()?,
            Stage::BootResync => {
                self.end_subject();
                let mut vm = VmOptions::new(vm_name()?);
                vm.qemu.clone_from(&self.vm.qemu);
                vm.volumes.push(scratch(self.plan.resync_volume_bytes)?);
                let mut subject = up('w', &vm)?;
                subject.enter(Mode::Unprotected)?;
                subject.workload.rewrite(SCRATCH, 100)?;
                subject.enter(Mode::Adaptive)?;
                self.subject = Some(subject);
            }
            Stage::Resync { percent } => {
                let resync = self.resync(percent)?;
                self.resyncs.push(resync);
            }
        }
        Ok(())
    }

    fn subject(&mut self) -> Result<&mut Subject, LabError> {
        self.subject.as_mut().ok_or_else(|| LabError::NotFound("bench".into()))
    }

    fn end_subject(&mut self) {
        if let Some(subject) = self.subject.take() {
            self.unplanned_takeovers += subject.takeovers() as u64;
        }
    }

    fn sample(&mut self, mode: Mode, job: Job) -> Result<Sample, LabError> {
        let (seconds, time) = (self.plan.pgbench_s, self.plan.sample());
        let subject = self.subject()?;
        subject.enter(mode)?;
        if job == Job::Pgbench {
            // Each side begins where the first write to a page takes all of the page along.
            sql::execute(Some(&subject.lab.netns(CLIENT)?), Guest::Postgres.service(), "CHECKPOINT")?;
        }
        subject.new_checkpoints()?;
        let begin = Instant::now();
        let value = match job {
            Job::Pgbench => pgbench::tps(&subject.lab, CLIENTS, seconds)?,
            Job::FioRandwrite => subject.workload.disk("randwrite", SCRATCH, CLIENTS, WARM_UP, time)? / 4096.0,
            Job::FioSeqwrite => subject.workload.disk("seqwrite", SCRATCH, 1, WARM_UP, time)? / 1e6,
            Job::FioFsync => subject.workload.disk("fsync", SCRATCH, CLIENTS, WARM_UP, time)? / 4096.0,
        };
        let seconds = begin.elapsed().as_secs_f64();
        Ok(Sample { value, checkpoints: subject.new_checkpoints()?, seconds })
    }

    /// Of the protected VM, in the middle of pgbench's time.
    fn snapshot(&mut self, whole: bool) -> Result<SnapshotFigures, LabError> {
        let seconds = self.plan.pgbench_s;
        let number = self.snapshots.len();
        let name = |n: usize| -> Result<SnapshotName, LabError> {
            format!("bench-{n}").parse().map_err(|_| LabError::NotFound(format!("bench-{n}")))
        };
        let request = Request::Snapshot {
            name: name(number)?,
            parent: if whole { None } else { Some(name(number.saturating_sub(1))?) },
            freeze: FreezeChoice::Never,
        };
        let subject = self.subject()?;
        subject.enter(Mode::Adaptive)?;
        let mark = subject.vm.events.mark();
        let subject = &*subject;
        let event = std::thread::scope(|scope| {
            let load = scope.spawn(|| pgbench::tps(&subject.lab, CLIENTS, seconds));
            // The load is under way by then.
            std::thread::sleep(Duration::from_secs(seconds.into()) / 3);
            subject.lab.ask(&subject.primary, &request)?;
            let done = subject.vm.events.wait_for(mark, Instant::now() + PATIENCE, |e| {
                matches!(e.kind, EventKind::SnapshotTaken { .. } | EventKind::SnapshotFailed { .. })
            });
            load.join().map_err(|_| LabError::NotFound("pgbench".into()))??;
            Ok::<_, LabError>(done)
        })?;
        match event.map(|e| e.kind) {
            Some(EventKind::SnapshotTaken { snapshot, .. }) => Ok(snapshot),
            Some(EventKind::SnapshotFailed { reason, .. }) => Err(subject.timeout(&format!("snapshot: {reason}"))),
            _ => Err(subject.timeout("snapshot")),
        }
    }

    /// A golden image of random bytes, and volumes made of it.
    fn clone_image(&mut self) -> Result<CloneResult, LabError> {
        let image_bytes = self.plan.image_bytes;
        let subject = self.subject()?;
        let dir = subject.lab.pool_dir(&subject.other()).join("bench-clones");
        let failed = |e: VolumeError| LabError::Command { what: "clone".into(), detail: e.to_string() };
        let begun = std::fs::create_dir_all(&dir).map_err(io_at(format!("make {}", dir.display())));
        let measured = begun.and_then(|()| {
            let file = dir.join("golden.raw");
            let random = std::fs::File::open("/dev/urandom").map_err(io_at("open /dev/urandom"))?;
            std::fs::File::create(&file)
                .and_then(|mut to| std::io::copy(&mut std::io::Read::take(random, image_bytes), &mut to))
                .map_err(io_at(format!("write {}", file.display())))?;
            let pool = Pool::open(&dir.join("pool"), Tools::default()).map_err(failed)?;
            let volume = |text: &str| text.parse::<VolumeName>().map_err(|_| LabError::NotFound(text.into()));
            let golden = volume("golden")?;
            let what = Import { source: &file, file_format: FileFormat::Raw, format: Format::Raw, size: None };
            let go_on = &mut |_| std::ops::ControlFlow::Continue(());
            pool.import(Kind::Golden, &golden, &what, go_on).map_err(failed)?;
            let mut timed = |name: &str, format| {
                let begin = Instant::now();
                pool.create_from(&volume(name)?, &golden, None, format, go_on).map_err(failed)?;
                Ok::<_, LabError>(begin.elapsed().as_secs_f64() * 1e3)
            };
            Ok(CloneResult {
                image_bytes,
                thin_ms: timed("thin", Format::Qcow2)?,
                whole_ms: timed("whole", Format::Raw)?,
            })
        });
        let _ = std::fs::remove_dir_all(&dir);
        measured
    }

    /// Changes a share of the volume while there is no backup.
    fn resync(&mut self, percent: u32) -> Result<(u32, u64, u64, u64), LabError> {
        let subject = self.subject()?;
        subject.enter(Mode::Adaptive)?;
        let (primary, backup) = (subject.primary.clone(), subject.other());
        let mark = subject.vm.events.mark();
        // In an orderly way: what is committed is in its image then.
        subject.lab.stop_keeper(&backup)?;
        let deadline = Instant::now() + PATIENCE;
        let alone = subject.vm.events.wait_for(mark, deadline, |e| matches!(e.kind, EventKind::Unprotected { .. }));
        if alone.is_none() {
            return Err(subject.timeout("word that the backup is gone"));
        }
        subject.workload.rewrite(SCRATCH, percent)?;
        let mark = subject.vm.events.mark();
        subject.lab.start_keeper(&backup)?;
        let again = subject.vm.events.wait_for(mark, Instant::now() + PATIENCE, |e| {
            e.host.as_str() == primary && matches!(e.kind, EventKind::Protected { .. })
        });
        match again.map(|e| e.kind) {
            Some(EventKind::Protected { sync_ms, bytes, volume_bytes, .. }) => {
                Ok((percent, sync_ms, volume_bytes, bytes))
            }
            _ => Err(subject.timeout("protection after a resync")),
        }
    }

    fn report(
        mut self,
        quick: bool,
        mut machine: MachineDescription,
        took: Duration,
    ) -> Result<VolumeReport, LabError> {
        machine.load_after = load();
        self.end_subject();
        let comparisons: Vec<_> = Job::ALL.iter().map(|job| self.comparison(*job)).collect();
        let ratio = |job: Job| comparisons.iter().find(|c| c.job == job).map_or(0.0, |c| c.ratio.median);
        let qemu = self.qemu.take();
        Ok(VolumeReport {
            ratios: VolumeRatios {
                pgbench: ratio(Job::Pgbench),
                fio_randwrite: ratio(Job::FioRandwrite),
                fio_seqwrite: ratio(Job::FioSeqwrite),
                fio_fsync: ratio(Job::FioFsync),
            },
            snapshot_pause_us: Spread::of(self.snapshots.iter().map(|(_, s)| s.pause_us as f64).collect()).median,
            snapshots: [true, false].map(|whole| self.snapshots_of(whole)).to_vec(),
            clones: self.clones,
            resync: CHANGED.map(|percent| self.resynced(percent)).to_vec(),
            comparisons,
            accel: qemu.as_ref().map_or(Accel::Tcg, |m| m.accel),
            qemu: qemu.as_ref().map_or_else(String::new, |m| m.qemu.clone()),
            accel_reason: qemu.map_or_else(String::new, |m| m.accel_reason),
            machine,
            plan: self.plan,
            disks: disks::supported(),
            quick,
            took_s: took.as_secs(),
            unplanned_takeovers: self.unplanned_takeovers,
        })
    }

    fn comparison(&self, job: Job) -> VolumeComparison {
        let side = |mode| self.samples.get(&(mode, job)).map_or(&[][..], Vec::as_slice);
        let values = |samples: &[Sample]| samples.iter().map(|s| s.value).collect::<Vec<_>>();
        let (unprotected, protected) = (values(side(Mode::Unprotected)), values(side(Mode::Adaptive)));
        let all: Vec<_> = side(Mode::Adaptive).iter().flat_map(|s| s.checkpoints.iter().copied()).collect();
        VolumeComparison {
            job,
            name: job.to_string(),
            unit: job.unit().to_owned(),
            ratio: Spread::ratios(&protected, &unprotected),
            unprotected: Spread::of(unprotected),
            protected: Spread::of(protected),
            checkpoints: Checkpoints::of(&all, side(Mode::Adaptive).iter().map(|s| s.seconds).sum()),
        }
    }

    fn snapshots_of(&self, whole: bool) -> SnapshotResult {
        let spread = |of: fn(&SnapshotFigures) -> f64| {
            Spread::of(self.snapshots.iter().filter(|(w, _)| *w == whole).map(|(_, s)| of(s)).collect())
        };
        SnapshotResult {
            whole,
            pause_us: spread(|s| s.pause_us as f64),
            seconds: spread(|s| s.took_ms as f64 / 1e3),
            bytes: spread(|s| s.bytes as f64),
        }
    }

    fn resynced(&self, percent: u32) -> Resync {
        let these: Vec<_> = self.resyncs.iter().filter(|r| r.0 == percent).collect();
        let median = |of: fn(&(u32, u64, u64, u64)) -> u64| {
            Spread::of(these.iter().map(|r| of(r) as f64).collect()).median as u64
        };
        let rounds_s = Spread::of(these.iter().map(|r| r.1 as f64 / 1e3).collect());
        Resync {
            changed_fraction: f64::from(percent) / 100.0,
            seconds: rounds_s.median,
            bytes: median(|r| r.2),
            memory_bytes: median(|r| r.3),
            rounds_s,
        }
    }
}

fn up(letter: char, vm: &VmOptions) -> Result<Subject, LabError> {
    let mut config = LabConfig::new(&lab_name(letter))?;
    config.disks = disks::supported();
    Subject::up(&config, vm)
}

fn vm_name() -> Result<VmName, LabError> {
    "bench".parse().map_err(|_| LabError::NotFound("bench".into()))
}

fn scratch(size: u64) -> Result<VolumeSpec, LabError> {
    let name: VolumeName = SCRATCH.parse().map_err(|_| LabError::NotFound(SCRATCH.into()))?;
    Ok(VolumeSpec::new(name, size))
}
