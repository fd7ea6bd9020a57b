//! A whole run: stage by stage, burst by burst.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ninefold_model::{HostName, InvalidName};

use super::judge::Start;
use super::plan::{Burst, Scope, Script, Subject};
use super::report::{ChaosReport, Violation};
use super::scene::{Found, Scene};
use crate::config::LabConfig;
use crate::disks;
use crate::error::LabError;
use crate::topology::WITNESS;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct ChaosOptions {
    /// The labs, one after the other, are like this; not persistent.
    pub lab: LabConfig,
    pub seed: u64,
    /// How long, boots not counted.
    pub seconds: u64,
    /// The VMs that take turns; not empty.
    pub subjects: Vec<Subject>,
    /// Begin with this burst of the script.
    pub from_burst: u64,
    /// Go on after something was found, with a new VM.
    pub keep_going: bool,
    /// Where what is found is kept.
    pub keep: PathBuf,
    /// When it becomes true the run ends, and says what it knows.
    pub stop: Arc<AtomicBool>,
}

/// What happens, as it happens.
#[derive(Debug)]
pub enum ChaosStep<'a> {
    /// The script is made.
    Planned {
        script: &'a Script,
    },
    Booting {
        subject: Subject,
    },
    Burst {
        burst: &'a Burst,
        of: u64,
    },
    AtRest {
        took: Duration,
        acked: u64,
    },
    /// Nobody held the VM any more.
    LegitimateLoss,
    /// Nor then, and it was started again from a disk of this host.
    StartedAgain {
        host: HostName,
        start: Start,
    },
    /// The VM ran alone on a disk that failed, and its guest did not get over the errors.
    GuestSawErrors,
    Violation(&'a Violation),
    /// Everything that was acknowledged has been read back.
    Verified {
        subject: Subject,
    },
}

/// Runs it. The labs are gone when this returns, also with an error.
///
/// # Errors
/// When a lab cannot be made or its VM not be booted. What is found is no error: the report says it.
pub fn run(options: &ChaosOptions, hear: &mut dyn FnMut(ChaosStep<'_>)) -> Result<ChaosReport, LabError> {
    let begin = Instant::now();
    let mut lab = options.lab.clone();
    lab.persistent = false;
    lab.disks = disks::supported();
    let failed = |e: InvalidName| LabError::Name { name: WITNESS.into(), reason: e.to_string() };
    let scope = Scope {
        hosts: enough(&lab.hosts, &options.subjects)?,
        witness: WITNESS.parse().map_err(failed)?,
        subjects: options.subjects.clone(),
        disks: lab.disks,
        slow_disks: disks::slow_supported(),
    };
    let script = Script::new(options.seed, options.seconds, &scope).from_burst(options.from_burst);
    hear(ChaosStep::Planned { script: &script });
    let mut report = ChaosReport {
        seed: options.seed,
        seconds: options.seconds,
        bursts_planned: script.bursts(),
        disks: scope.disks,
        slow_disks: scope.slow_disks,
        ..ChaosReport::default()
    };
    let hosts = scope.hosts;
    let mut runner = Runner { options, lab, hosts, hear, report: &mut report, of: script.bursts() };
    for stage in &script.stages {
        if !runner.stage(stage.subject, &stage.bursts)? {
            break;
        }
    }
    report.interrupted = options.stop.load(Ordering::Relaxed);
    report.total_s = begin.elapsed().as_secs_f64();
    Ok(report)
}

/// These hosts, and as many more as the VM needs that needs most.
fn enough(hosts: &[HostName], subjects: &[Subject]) -> Result<Vec<HostName>, LabError> {
    let failed = |e: InvalidName| LabError::Name { name: "host".into(), reason: e.to_string() };
    let mut all = hosts.to_vec();
    let wanted = subjects.iter().map(|s| s.hosts()).max().unwrap_or(0);
    for name in ["a", "b", "c", "d"] {
        if all.len() < wanted && !all.iter().any(|h| h.as_str() == name) {
            all.push(name.parse().map_err(failed)?);
        }
    }
    Ok(all)
}

struct Runner<'a> {
    options: &'a ChaosOptions,
    lab: LabConfig,
    /// Those that the VM of a stage takes its own from.
    hosts: Vec<HostName>,
    hear: &'a mut dyn FnMut(ChaosStep<'_>),
    report: &'a mut ChaosReport,
    of: u64,
}

impl Runner<'_> {
    /// Answers whether to go on with the next stage.
    fn stage(&mut self, subject: Subject, bursts: &[Burst]) -> Result<bool, LabError> {
        let options = self.options;
        let mut scene: Option<Scene<'_>> = None;
        let time_is_up = |report: &ChaosReport| report.chaos_s >= options.seconds as f64;
        for burst in bursts {
            if options.stop.load(Ordering::Relaxed) || time_is_up(self.report) {
                break;
            }
            let mut here = match scene.take() {
                Some(scene) => scene,
                None => {
                    (self.hear)(ChaosStep::Booting { subject });
                    *self.report.subjects.entry(subject.to_string()).or_default() += 1;
                    let hosts = self.hosts.iter().take(subject.hosts()).cloned().collect();
                    let lab = LabConfig { hosts, ..self.lab.clone() };
                    Scene::begin(&lab, subject, options.seed, &options.keep, &options.stop)?
                }
            };
            (self.hear)(ChaosStep::Burst { burst, of: self.of });
            let begin = Instant::now();
            let found = here.burst(burst);
            self.report.bursts += 1;
            self.report.chaos_s += begin.elapsed().as_secs_f64();
            match found {
                Found::Rest { took } => {
                    (self.hear)(ChaosStep::AtRest { took, acked: here.acked() });
                    scene = Some(here);
                }
                Found::LegitimateLoss => {
                    (self.hear)(ChaosStep::LegitimateLoss);
                    self.report.losses_legitimate += 1;
                    here.abandon(self.report)?;
                }
                Found::StartedAgain { host, start } => {
                    self.report.losses_legitimate += 1;
                    match start {
                        Start::Plain => self.report.restarts_plain += 1,
                        Start::Forced => self.report.restarts_forced += 1,
                    }
                    (self.hear)(ChaosStep::StartedAgain { host, start });
                    // What the judge knows is of its life before: another VM takes its place.
                    match here.read_back(None, self.report)? {
                        None => (self.hear)(ChaosStep::Verified { subject }),
                        Some(violation) => {
                            if !self.found(violation) {
                                return Ok(false);
                            }
                        }
                    }
                }
                Found::GuestSawErrors => {
                    (self.hear)(ChaosStep::GuestSawErrors);
                    self.report.guests_with_errors += 1;
                    here.abandon(self.report)?;
                }
                Found::Violation(violation) => {
                    here.abandon(self.report)?;
                    if !self.found(*violation) {
                        return Ok(false);
                    }
                }
                Found::Interrupted => {
                    here.abandon(self.report)?;
                    return Ok(false);
                }
            }
        }
        if let Some(here) = scene {
            match here.end(self.report)? {
                None => (self.hear)(ChaosStep::Verified { subject }),
                Some(violation) => return Ok(self.found(violation)),
            }
        }
        Ok(!options.stop.load(Ordering::Relaxed) && !time_is_up(self.report))
    }

    /// Answers whether to go on.
    fn found(&mut self, violation: Violation) -> bool {
        (self.hear)(ChaosStep::Violation(&violation));
        self.report.violations.push(violation);
        self.options.keep_going
    }
}
