//! `ninefold-lab demo`: the main job, told as it happens. The job itself is `ninefold_lab::demo`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ninefold_lab::Guest;
use ninefold_lab::demo::{self, Act, ActReport, Audience, DemoOptions, DemoReport, Fault, Step};
use ninefold_model::event::FailoverPhases;
use ninefold_shell::output::{Output, brief, bytes, count, ms, say};

use crate::error::CommandError;
use crate::interrupt;
use crate::progress;
use crate::progress::ProgressBar;
use crate::up::VmShape;

/// Show the main job: VMs that survive their hosts, with clients that check every write
///
/// Two acts, each in a lab of its own. First a Debian guest with redis: it is protected, and what runs it is killed, again
/// and again, while a client writes on one TCP connection. Then one with PostgreSQL on a replicated volume, the same;
/// and at last all of it loses its power and comes back. Exit code 0 only if no acknowledged write or transaction was
/// lost, no connection broke, and never two hosts spoke for a VM.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold-lab demo\n  \
    ninefold-lab demo --failovers 9 --report /tmp/report.json\n  \
    ninefold-lab demo --vcpus 2 --plain-text --json | jq .client_gap_ms\n\n\
    With --json: the report on standard output, and nothing else.")]
pub struct DemoArgs {
    /// Where the report is written (JSON)
    #[arg(long, value_name = "FILE", default_value = "target/demo/report.json")]
    report: PathBuf,
    /// How many times the primary is lost in each act: QEMU, the keeper, the whole host in turn
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    failovers: u32,
    /// The name of the labs that are made for it, one after the other
    #[arg(long, alias = "lab", value_name = "LAB", default_value = "demo-run")]
    name: String,
    #[command(flatten)]
    vm: VmShape,
}

pub fn run(args: &DemoArgs, output: &Output) -> Result<(), CommandError> {
    let mut options = DemoOptions::new(&args.name)?;
    options.lab.security = args.vm.security();
    options.database_lab.security = args.vm.security();
    options.vm = args.vm.options()?;
    // PostgreSQL's programs are in memory: it needs more.
    options.database.memory_mib = options.database.memory_mib.max(options.vm.memory_mib);
    options.database.vcpus = options.vm.vcpus;
    options.database.accel = options.vm.accel;
    options.database.qemu.clone_from(&options.vm.qemu);
    options.failovers = args.failovers;
    let file = |what: &str| format!("{what} {}", args.report.display());
    if let Some(dir) = args.report.parent() {
        std::fs::create_dir_all(dir).map_err(CommandError::io(file("make the directory of")))?;
    }
    // A report of an earlier run is not to be taken for this one's.
    match std::fs::remove_file(&args.report) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(CommandError::io(file("replace"))(e)),
        _ => {}
    }
    let armed = interrupt::take_down_on_signal(&args.name)?;
    let mut teller = Teller { quiet: output.is_json(), bar: None, act: Act::Redis, scenes: Vec::new(), current: None };
    let ran = demo::run(&options, &mut teller);
    teller.clear();
    drop(armed);
    let report = ran?;
    let json = serde_json::to_vec_pretty(&report).map_err(CommandError::io(file("write")))?;
    std::fs::write(&args.report, json).map_err(CommandError::io(file("write")))?;
    let failures = report.failures();
    output.show(&report, || summary(&report, args))?;
    if failures.is_empty() { Ok(()) } else { Err(CommandError::Demo(failures)) }
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
    act: Act,
    /// Of this act.
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

    /// What the client does, in the plural.
    fn writes(&self) -> &'static str {
        match self.act {
            Act::Redis => "writes",
            Act::Database => "transactions",
        }
    }
}

fn seconds(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

fn us(d: Duration) -> u64 {
    d.as_micros() as u64
}

impl Audience for Teller {
    fn hear(&mut self, step: Step) {
        match step {
            Step::Act(act) => {
                self.act = act;
                self.scenes.clear();
                self.say(match act {
                    Act::Redis => {
                        "Act 1: a VM that survives its host. One client writes to its redis all the time, on one TCP \
                         connection.\n"
                    }
                    Act::Database => {
                        "\n\nAct 2: a database on a volume that each host has a copy of. Four connections move money \
                         between accounts.\n"
                    }
                });
            }
            Step::LabUp { lab, tls, disks, took } => {
                let link = if tls { "mutual TLS" } else { "plain text" };
                let disks = if disks { "; disks that forget what was not synced when the power fails" } else { "" };
                self.say(&format!(
                    "1. Hosts a and b, a witness and a client: lab '{lab}' with two networks, {link}{disks} ({})",
                    seconds(took)
                ));
                self.wait("starting the witness and the keepers");
            }
            Step::Booting(progress) => {
                if let Some(bar) = &self.bar {
                    progress::boot(bar, &progress);
                }
            }
            Step::Protected { status, guest, boot, sync } => {
                let machine = status.machine.as_ref().map_or_else(String::new, |m| {
                    format!("QEMU {} with {} ({})", m.qemu, m.accel, brief(&m.accel_reason))
                });
                let peer = status.peer.as_ref().map_or_else(|| "nobody".into(), ToString::to_string);
                let (what, copied) = match guest {
                    Guest::Basic => ("redis", "its memory is there too"),
                    Guest::Postgres => ("PostgreSQL on a volume", "its memory and its volume are there too"),
                };
                self.say(&format!(
                    "2. Debian with {what} boots on host {} ({}), {machine}\n3. Protected by host {peer}: {copied} ({}), \
                     and from now on every change",
                    status.host,
                    seconds(boot),
                    ms(us(sync)),
                ));
                self.wait("the client writes");
            }
            Step::Writing { acked } => {
                self.say(&format!("   the client writes: {} {} acknowledged so far", count(acked), self.writes()));
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
            Step::TookOver { by, phases: p, gap, acked } => {
                let same = match self.act {
                    Act::Redis => "on the same connection",
                    Act::Database => "on the same connections",
                };
                self.say(&format!(
                    "   host {by} took over: detect {}, witness {}, load {}, resume {}\n   the client waited {} for an \
                     answer, {same}; {} {} acknowledged",
                    ms(p.detect_us),
                    ms(p.arbitrate_us),
                    ms(p.load_us),
                    ms(p.resume_us),
                    ms(us(gap)),
                    count(acked),
                    self.writes(),
                ));
                let title = self.current.take().unwrap_or_default();
                self.scenes.push(Scene { title, phases: p, gap_us: us(gap) });
                self.wait("a new backup is sought");
            }
            Step::Restarted { host, fault } => {
                let what = if fault == Fault::KillHost { "is switched on again" } else { "has its keeper back" };
                self.say(&format!("   host {host} {what}"));
                self.wait("what it lacks is copied to it");
            }
            Step::Reprotected { backup, since, sync, volume_bytes, .. } => {
                let volume = match self.act {
                    Act::Redis => String::new(),
                    Act::Database => format!(", {} of the volume", bytes(volume_bytes)),
                };
                self.say(&format!(
                    "   protected again, by host {backup}, after {} (copy {}{volume})",
                    seconds(since),
                    ms(us(sync))
                ));
                self.wait("the client writes");
            }
            Step::PowerLost { acked, under_way, unsynced_dropped } => {
                let dropped = if unsynced_dropped { ", and the disks forget what was not synced" } else { "" };
                self.say(&format!(
                    "\nHosts a and b and the witness lose their power in the middle of it{dropped}\n   {} transactions \
                     acknowledged, {under_way} under way",
                    count(acked)
                ));
                self.wait("the power comes back");
            }
            Step::PowerOn { took } => {
                self.say(&format!("   the power is back; witness and keepers run ({})", seconds(took)));
                self.wait("the VM goes on");
            }
            Step::Recovered { host, by_itself, recovery } => {
                let how = match by_itself {
                    true => format!("the VM goes on by itself on host {host}, from its log, on the same connections"),
                    false => format!("the VM was started on host {host}, and PostgreSQL has recovered"),
                };
                self.say(&format!(
                    "   {how}\n   the first transaction is acknowledged {} after the power came",
                    seconds(recovery)
                ));
                self.wait("a backup is sought");
            }
            Step::Verified { act, acked, lost, resets } => {
                let what = match act {
                    Act::Redis => "Every write is looked up",
                    Act::Database => "Every transaction is looked up, and every balance computed anew",
                };
                self.say(&format!(
                    "\n{what}: {} acknowledged, {lost} lost, {resets} connections reset\n\nThe client's longest waits \
                     (each row is one failover)\n\n{}",
                    count(acked),
                    timeline(&self.scenes)
                ));
                self.wait("taking the lab down");
            }
            Step::LabDown { took } => self.say(&format!("The lab is gone ({})", seconds(took))),
        }
    }
}

fn summary(report: &DemoReport, args: &DemoArgs) -> String {
    let act = |name: &str, act: &ActReport| {
        let pause = &act.pause_us;
        format!(
            "{name}: ran on {}; {} checkpoints committed; guest paused p50 {}, p99 {}, max {}\n",
            act.path.join(" -> "),
            count(act.epochs),
            ms(pause.p50),
            ms(pause.p99),
            ms(pause.max),
        )
    };
    let database = &report.database;
    let mut text = format!("\n{}{}", act("redis", &report.redis), act("PostgreSQL", &database.act));
    text += &format!(
        "resyncs sent {} of a volume of {}; after the loss of power the first transaction took {:.1} s\n",
        bytes(database.resync_bytes),
        bytes(database.volume_bytes),
        database.power_loss_recovery_ms / 1000.0
    );
    let spoke = match report.redis.speakers_overlapped + database.act.speakers_overlapped {
        0 => "never two hosts spoke for a VM".to_owned(),
        n => format!("{n} TIMES A HOST SPOKE OUT OF TURN"),
    };
    text += &format!(
        "{} writes acknowledged, {} lost; {} transactions acknowledged, {} lost; {} connections reset; {spoke}\n",
        count(report.acked_writes),
        report.acked_writes_lost,
        count(database.transactions_acked),
        database.transactions_lost,
        report.redis.connections_reset + database.act.connections_reset
    );
    for complaint in report.redis.complaints.iter().chain(&database.act.complaints) {
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
