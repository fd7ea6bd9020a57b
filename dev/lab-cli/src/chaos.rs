//! `ninefold-lab chaos`: random faults, told as they happen. The job itself is `ninefold_lab::chaos`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use ninefold_lab::LabConfig;
use ninefold_lab::chaos::{self, ChaosOptions, ChaosReport, ChaosStep, Start, Subject};
use ninefold_shell::ShellError;
use ninefold_shell::output::{Output, count, say};

use crate::error::CommandError;

/// Random faults, several at once, for a time and a seed
///
/// Makes a lab, boots a VM under a client that checks every write, and does to its hosts, disks, cables and witness what the
/// seed says; after each burst of faults everything is mended and the VM has to come to rest. VMs with redis and PostgreSQL,
/// volatile and non-volatile, take turns. Exit code 0 only if no VM was lost whose state was whole on a living host, nothing
/// acknowledged was lost, no connection broke, and every VM came to rest. Ctrl-C ends it in order, with its report.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold-lab chaos --seconds 600 --seed 7\n  \
    ninefold-lab chaos --seconds 600 --seed 7 --from 23        the same script from its burst 23 on\n  \
    ninefold-lab chaos --seconds 36000 --keep-going --json | jq .violations\n\n\
    With --json: the report on standard output, and nothing else.")]
pub struct ChaosArgs {
    /// How long; boots are not counted
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seconds: u64,
    /// Makes the script; the same seed and time make the same. Without it one is chosen, and shown
    #[arg(long)]
    seed: Option<u64>,
    /// Only such VMs; by default all of them take turns
    #[arg(long, value_enum, value_name = "VM")]
    only: Vec<Vm>,
    /// Begin with this burst of the script
    #[arg(long, value_name = "BURST", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// Go on after something was found
    #[arg(long)]
    keep_going: bool,
    /// Where what is found is kept: the script up to it, what was done, events, logs
    #[arg(long, value_name = "DIR", default_value = "target/chaos")]
    keep: PathBuf,
    /// The name of the labs that are made for it, one after the other
    #[arg(long, alias = "lab", value_name = "LAB", default_value = "chaos")]
    name: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Vm {
    Redis,
    RedisNonVolatile,
    PostgresMemory,
    PostgresDisk,
    PostgresNonVolatile,
    RedisTwoBackups,
}

impl From<Vm> for Subject {
    fn from(vm: Vm) -> Self {
        match vm {
            Vm::Redis => Self::Redis,
            Vm::RedisNonVolatile => Self::RedisNonVolatile,
            Vm::PostgresMemory => Self::PostgresMemory,
            Vm::PostgresDisk => Self::PostgresDisk,
            Vm::PostgresNonVolatile => Self::PostgresNonVolatile,
            Vm::RedisTwoBackups => Self::RedisTwoBackups,
        }
    }
}

pub fn run(args: &ChaosArgs, output: &Output) -> Result<(), CommandError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut subjects: Vec<Subject> = args.only.iter().map(|vm| (*vm).into()).collect();
    if subjects.is_empty() {
        subjects = Subject::ALL.to_vec();
    }
    let options = ChaosOptions {
        lab: LabConfig::new(&args.name)?,
        seed: args.seed.unwrap_or(u64::from(now.subsec_nanos()) ^ now.as_secs()),
        seconds: args.seconds,
        subjects,
        from_burst: args.from,
        keep_going: args.keep_going,
        keep: args.keep.clone(),
        stop: ninefold_shell::interrupt::stop_flag()?,
    };
    let quiet = output.is_json();
    let report = chaos::run(&options, &mut |step| {
        if !quiet && let Some(text) = tell(&step, options.seed) {
            // A reader that has gone does not stop it.
            let _ = say(&text);
        }
    })?;
    output.show(&report, || summary(&report))?;
    match (report.failures(), report.interrupted) {
        (failures, _) if !failures.is_empty() => Err(CommandError::Chaos { seed: report.seed, failures }),
        (_, true) => Err(ShellError::Interrupted.into()),
        _ => Ok(()),
    }
}

fn tell(step: &ChaosStep<'_>, seed: u64) -> Option<String> {
    Some(match step {
        ChaosStep::Planned { script } => format!("Seed {seed}: {} bursts of faults.", script.bursts()),
        ChaosStep::Booting { subject } => format!("\nA VM with {subject} boots."),
        ChaosStep::Burst { burst, of } => {
            let faults: Vec<_> = burst
                .faults
                .iter()
                .map(|f| format!("\n    {:5} to {:5} ms: {}", f.begin_ms, f.end_ms, f.fault))
                .collect();
            format!("burst {} of {of}{}", burst.number, faults.concat())
        }
        ChaosStep::AtRest { took, acked } => {
            format!("  at rest after {:.1} s, {} acknowledged", took.as_secs_f64(), count(*acked))
        }
        ChaosStep::LegitimateLoss => "  the VM is lost, legitimately: nobody held its state any more".into(),
        ChaosStep::StartedAgain { host, start } => {
            let how = if *start == Start::Plain { "plainly" } else { "by force, since it must have all of it" };
            format!("  the VM was lost, legitimately, and is started again from the disk of {host}, {how}")
        }
        ChaosStep::GuestSawErrors => {
            "  the guest did not get over I/O errors; it ran without a backup on a disk that failed".into()
        }
        ChaosStep::Violation(violation) => {
            let kept = violation.kept.as_ref().map(|dir| format!("\n  kept: {}", dir.display())).unwrap_or_default();
            format!("  VIOLATION: {}: {}{kept}", violation.kind, violation.words)
        }
        ChaosStep::Verified { subject } => format!("  everything that the VM with {subject} acknowledged is there"),
    })
}

fn summary(report: &ChaosReport) -> String {
    let faults: Vec<_> = report.faults.iter().map(|(kind, n)| format!("\n  {n:6}  {kind}")).collect();
    let done: u64 = report.faults.values().sum();
    let verdict = match (report.is_clean(), report.interrupted) {
        (true, false) => "no VM was lost that somebody held, and nothing that was acknowledged".to_owned(),
        (true, true) => "interrupted; nothing was found up to then".to_owned(),
        (false, _) => format!("VIOLATIONS:\n  {}", report.failures().join("\n  ")),
    };
    let mut text = format!(
        "\n{} faults in {} bursts, {:.0} s of chaos (seed {}):{}\n\n\
         {} take-overs, {} recoveries from a log, {} times bound to a backup; {} legitimate losses, {} of them started again ({} by force), {} guests with I/O errors\n\
         {} writes and {} transactions acknowledged, {} of them lost ({} could not be read back); longest silence {} ms\n\
         {} late frames\n",
        count(done),
        count(report.bursts),
        report.chaos_s,
        report.seed,
        faults.concat(),
        count(report.failovers),
        count(report.recoveries),
        count(report.protected),
        count(report.losses_legitimate),
        count(report.restarts_plain + report.restarts_forced),
        count(report.restarts_forced),
        count(report.guests_with_errors),
        count(report.acked_writes),
        count(report.acked_transactions),
        count(report.acked_lost),
        count(report.acked_unverified),
        report.longest_gap_ms,
        count(report.late_frames),
    );
    if !report.disks {
        text += "without faults of disks: this machine has no loop devices\n";
    } else if !report.slow_disks {
        text += "without slow disks: this machine has no limits for devices (control groups version 1, blkio)\n";
    }
    text + "\n" + &verdict
}
