//! `ninefold demo`: the main job, told as it happens. The job itself is `ninefold_lab::demo`.

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use ninefold_lab::demo::{self, Audience, DemoOptions, DemoReport, Fault, Step};
use ninefold_model::event::FailoverPhases;

use crate::error::CliError;
use crate::interrupt;
use crate::lab::VmShape;
use crate::output::{Output, brief, count, ms, say};
use crate::progress;

/// Show the main job: a VM that survives its host, with a client that checks every write
///
/// Makes a lab, boots a Debian guest with redis, protects it, and kills what runs it, again and again, while a client
/// writes on one TCP connection. Exit code 0 only if no acknowledged write was lost, no connection broke, and never two
/// hosts spoke for the VM.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold demo\n  \
    ninefold demo --failovers 9 --report /tmp/report.json\n  \
    ninefold demo --vcpus 2 --plain-text --json | jq .client_gap_ms\n\n\
    With --json: the report on standard output, and nothing else.")]
pub struct DemoArgs {
    /// Where the report is written (JSON)
    #[arg(long, value_name = "FILE", default_value = "target/demo/report.json")]
    report: PathBuf,
    /// How many times the primary is lost: QEMU, the keeper, the whole host in turn
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    failovers: u32,
    /// The name of the lab that is made for it
    #[arg(long, alias = "lab", value_name = "LAB", default_value = "demo-run")]
    name: String,
    #[command(flatten)]
    vm: VmShape,
}

pub fn run(args: &DemoArgs, output: &Output) -> Result<(), CliError> {
    let mut options = DemoOptions::new(&args.name)?;
    options.lab.security = args.vm.security();
    options.vm = args.vm.options()?;
    options.failovers = args.failovers;
    let file = |what: &str| format!("{what} {}", args.report.display());
    if let Some(dir) = args.report.parent() {
        std::fs::create_dir_all(dir).map_err(CliError::io(file("make the directory of")))?;
    }
    // A report of an earlier run is not to be taken for this one's.
    match std::fs::remove_file(&args.report) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(CliError::io(file("replace"))(e)),
        _ => {}
    }
    let armed = interrupt::take_down_on_signal(&args.name)?;
    let mut teller = Teller { quiet: output.is_json(), bar: None, scenes: Vec::new(), current: None };
    teller.say("A VM that survives its host. One client writes to its redis all the time, on one TCP connection.\n");
    let ran = demo::run(&options, &mut teller);
    teller.clear();
    drop(armed);
    let report = ran?;
    let json = serde_json::to_vec_pretty(&report).map_err(CliError::io(file("write")))?;
    std::fs::write(&args.report, json).map_err(CliError::io(file("write")))?;
    let failures = report.failures();
    output.show(&report, || summary(&report, &teller.scenes, args))?;
    if failures.is_empty() { Ok(()) } else { Err(CliError::Demo(failures)) }
}

/// One failover, for the timeline.
struct Scene {
    title: String,
    phases: FailoverPhases,
    gap_us: u64,
}

/// Tells a person.
struct Teller {
    quiet: bool,
    bar: Option<ProgressBar>,
    scenes: Vec<Scene>,
    current: Option<String>,
}

impl Teller {
    fn say(&mut self, text: &str) {
        self.clear();
        if !self.quiet {
            // A reader that has gone does not stop the demo.
            let _ = say(text);
        }
    }

    fn wait(&mut self, text: &str) {
        self.clear();
        if !self.quiet {
            self.bar = Some(progress::spinner(text));
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Audience for Teller {
    fn hear(&mut self, step: Step) {
        let seconds = |d: std::time::Duration| format!("{:.1} s", d.as_secs_f64());
        match step {
            Step::LabUp { lab, tls, took } => {
                let link = if tls { "mutual TLS" } else { "plain text" };
                self.say(&format!(
                    "1. Hosts a and b, a witness and a client: lab '{lab}' with two networks, {link} ({})",
                    seconds(took)
                ));
                self.wait("starting the witness and the keepers");
            }
            Step::Booting(progress) => {
                if let Some(bar) = &self.bar {
                    progress::boot(bar, &progress);
                }
            }
            Step::Protected { status, boot, sync } => {
                let machine = status.machine.as_ref().map_or_else(String::new, |m| {
                    format!("QEMU {} with {} ({})", m.qemu, m.accel, brief(&m.accel_reason))
                });
                let peer = status.peer.as_ref().map_or_else(|| "nobody".into(), ToString::to_string);
                self.say(&format!(
                    "2. Debian with redis boots on host {} ({}), {machine}\n3. Protected by host {peer}: its memory is \
                     there too ({}), and from now on every change",
                    status.host,
                    seconds(boot),
                    ms(sync.as_micros() as u64),
                ));
                self.wait("the client writes");
            }
            Step::Writing { acked } => {
                self.say(&format!("   the client writes: {} writes acknowledged so far", count(acked)));
            }
            Step::Fault { number, of, fault, primary, backup } => {
                let what = match fault {
                    Fault::KillQemu => format!("QEMU on host {primary} is killed"),
                    Fault::KillKeeper => format!("the keeper on host {primary} is killed, and QEMU dies with it"),
                    Fault::KillHost => format!("host {primary} loses power: all of it, at once"),
                };
                self.say(&format!("\n{}. Failover {number} of {of}: {what}", number + 3));
                self.current = Some(format!("{number}. {} on {primary}", fault.words()));
                self.wait(&format!("host {backup} takes over"));
            }
            Step::TookOver { by, phases: p, gap, acked, .. } => {
                self.say(&format!(
                    "   host {by} took over: detect {}, witness {}, load {}, resume {}\n   the client waited {} for an \
                     answer, on the same connection; {} writes acknowledged",
                    ms(p.detect_us),
                    ms(p.arbitrate_us),
                    ms(p.load_us),
                    ms(p.resume_us),
                    ms(gap.as_micros() as u64),
                    count(acked),
                ));
                let title = self.current.take().unwrap_or_default();
                self.scenes.push(Scene { title, phases: p, gap_us: gap.as_micros() as u64 });
                self.wait("a new backup is sought");
            }
            Step::Restarted { host, fault, .. } => {
                let what = if fault == Fault::KillHost { "is switched on again" } else { "has its keeper back" };
                self.say(&format!("   host {host} {what}"));
                self.wait("memory is copied to it");
            }
            Step::Reprotected { backup, since_fault, sync, .. } => {
                self.say(&format!(
                    "   protected again, by host {backup}, {} after the fault (copy {})",
                    seconds(since_fault),
                    ms(sync.as_micros() as u64)
                ));
                self.wait("the client writes");
            }
            Step::Verified { acked, lost, resets } => {
                self.say(&format!(
                    "\nEvery write is looked up: {} acknowledged, {lost} lost, {resets} connections reset",
                    count(acked)
                ));
                self.wait("taking the lab down");
            }
            Step::LabDown { took } => self.say(&format!("The lab is gone ({})", seconds(took))),
        }
    }
}

fn summary(report: &DemoReport, scenes: &[Scene], args: &DemoArgs) -> String {
    let mut text = format!("\nThe client's longest waits (each row is one failover)\n\n{}", timeline(scenes));
    let pause = &report.pause_us;
    text += &format!(
        "\nran on {}; {} checkpoints committed; guest paused p50 {}, p99 {}, max {}\n",
        report.path.join(" -> "),
        count(report.epochs),
        ms(pause.p50),
        ms(pause.p99),
        ms(pause.max),
    );
    let spoke = match report.speakers_overlapped {
        0 => "never two hosts spoke for the VM".to_owned(),
        n => format!("{n} TIMES A HOST SPOKE OUT OF TURN"),
    };
    text += &format!(
        "{} writes acknowledged, {} lost; {} connections reset; {spoke}\n",
        count(report.acked_writes),
        report.acked_writes_lost,
        report.connections_reset
    );
    for complaint in &report.complaints {
        text += &format!("  {complaint}\n");
    }
    text + &format!("report: {}   ({:.0} s in all)", args.report.display(), report.total_ms / 1000.0)
}

/// One bar for each failover: its phases, then what passes until the client has an answer.
fn timeline(scenes: &[Scene]) -> String {
    const WIDTH: u64 = 50;
    let longest = scenes.iter().map(|s| s.gap_us).max().unwrap_or(0).max(1);
    let mut text = String::new();
    for scene in scenes {
        let p = scene.phases;
        let steps = [('d', p.detect_us), ('w', p.arbitrate_us), ('l', p.load_us), ('r', p.resume_us)];
        // Part of the load runs while the witness is asked, so the phases may add up to more than the wait.
        let rest = scene.gap_us.saturating_sub(steps.iter().map(|(_, us)| us).sum());
        let mut bar = String::new();
        let mut drawn = 0;
        let mut until = 0;
        for (letter, us) in steps.into_iter().chain([('.', rest)]) {
            until += us;
            let upto = (until * WIDTH).div_ceil(longest).min(WIDTH);
            bar.extend((drawn..upto).map(|_| letter));
            drawn = drawn.max(upto);
        }
        text += &format!("  {:<24} {bar} {}\n", scene.title, ms(scene.gap_us));
    }
    text + "  d detect, w ask the witness, l load, r resume, . until TCP has brought the client its answer\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_wait() {
        let scene = |gap_us, load_us| Scene {
            title: "x".into(),
            phases: FailoverPhases { detect_us: 1000, arbitrate_us: 1000, load_us, resume_us: 0 },
            gap_us,
        };
        let text = timeline(&[scene(10_000, 3000), scene(5_000, 90_000)]);
        let bars: Vec<_> = text.lines().map(|l| l.split_whitespace().nth(1).unwrap_or("").len()).collect();
        assert_eq!(&bars[..2], [50, 50], "the second one's phases exceed its wait, and are cut");
        assert_eq!(text.lines().next().unwrap().matches('.').count(), 25);
    }
}
