//! The verbs that break things, and those that mend them.

use clap::{Args, Subcommand, ValueEnum};
use ninefold_fault::{Faults, InvalidFault};
use ninefold_lab::programs::{KEEPER, WITNESS_PROGRAM};
use ninefold_lab::status::LinkState;
use ninefold_lab::topology::WITNESS;
use ninefold_lab::{Cut, Lab, LabError, Network};
use ninefold_shell::Output;

use crate::error::CommandError;
use crate::labs::{Done, Which};

/// Kill a host's QEMU, its keeper, or all of it
///
/// `host` is like pulling the plug: its interfaces go down and all its processes die at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold-lab kill a qemu\n  ninefold-lab kill b host && ninefold-lab restart b")]
pub struct KillArgs {
    host: String,
    #[arg(value_enum)]
    what: Victim,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Victim {
    Qemu,
    Keeper,
    Host,
}

/// Bring back what was killed on a host
///
/// Switches a killed host on again and starts its keeper (on w: the witness).
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold-lab kill a host && ninefold-lab restart a\n  \
    ninefold-lab kill b keeper && ninefold-lab restart b --faults 'apply.op@100=abort'")]
pub struct RestartArgs {
    host: String,
    /// Fault points of its keeper, POINT[@N]=abort or POINT[@N]=fail[*K], separated by commas: at which step it dies, or an
    /// I/O error happens
    #[arg(long, value_name = "POINTS", default_value = "", hide_default_value = true, value_parser = fault_points)]
    faults: String,
    #[command(flatten)]
    which: Which,
}

fn fault_points(text: &str) -> Result<String, InvalidFault> {
    text.parse::<Faults>().map(|_| text.to_owned())
}

/// Stop all of a host's processes where they are, or its disk
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold-lab freeze a && ninefold vm events && ninefold-lab thaw a\n  \
    ninefold-lab freeze a --disk && sleep 15 && ninefold vm status && ninefold-lab thaw a --disk")]
pub struct FreezeArgs {
    host: String,
    /// Its disk alone: who writes to it waits. In a lab whose hosts have disks (`ninefold-lab up --non-volatile`)
    #[arg(long)]
    disk: bool,
    #[command(flatten)]
    which: Which,
}

/// Let a frozen host go on, or its disk
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold-lab thaw a\n  ninefold-lab thaw a --disk")]
pub struct ThawArgs {
    host: String,
    /// Its disk alone
    #[arg(long)]
    disk: bool,
    #[command(flatten)]
    which: Which,
}

/// Cut a host's cable to a network
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold-lab cut a replication\n  \
    ninefold-lab cut a both --blackhole && ninefold-lab heal a both")]
pub struct CutArgs {
    host: String,
    #[arg(value_enum)]
    network: Cable,
    /// The switch drops everything, and the host keeps its carrier
    #[arg(long)]
    blackhole: bool,
    #[command(flatten)]
    which: Which,
}

/// Heal a host's cable, however it was cut
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold-lab heal a replication")]
pub struct HealArgs {
    host: String,
    #[arg(value_enum)]
    network: Cable,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Cable {
    /// To the VM's clients
    Public,
    /// To the other hosts and the witness
    Replication,
    Both,
}

impl Cable {
    fn networks(self) -> &'static [Network] {
        match self {
            Cable::Public => &[Network::Public],
            Cable::Replication => &[Network::Replication],
            Cable::Both => &Network::ALL,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Cable::Public => "cable to the public network",
            Cable::Replication => "cable to the replication network",
            Cable::Both => "cables",
        }
    }
}

/// Start, stop or kill the witness
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold-lab witness kill\n  ninefold-lab witness start")]
pub struct WitnessArgs {
    #[command(subcommand)]
    verb: WitnessVerb,
}

#[derive(Debug, Subcommand)]
enum WitnessVerb {
    /// Start it on the register that it left
    #[command(after_help = "Example:\n  ninefold-lab witness start")]
    Start(Which),
    /// End it in an orderly way
    #[command(after_help = "Example:\n  ninefold-lab witness stop")]
    Stop(Which),
    /// Kill it; its register stays on the disk
    #[command(after_help = "Example:\n  ninefold-lab witness kill")]
    Kill(Which),
}

fn done(output: &Output, lab: &Lab, host: Option<&str>, verb: &str, text: String) -> Result<(), CommandError> {
    output.show(&Done { lab: lab.name(), done: verb, host }, || text)?;
    Ok(())
}

pub fn kill(args: &KillArgs, output: &Output) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    let host = args.host.as_str();
    let (verb, what) = match args.what {
        Victim::Qemu => {
            lab.kill_qemu(host)?;
            ("kill_qemu", "QEMU is dead")
        }
        Victim::Keeper => {
            lab.kill_keeper(host)?;
            ("kill_keeper", "its keeper is dead (`ninefold-lab restart` starts it again)")
        }
        Victim::Host => {
            lab.kill_host(host)?;
            ("kill_host", "it is off (`ninefold-lab restart` switches it on)")
        }
    };
    done(output, &lab, Some(host), verb, format!("host {host}: {what}"))
}

pub fn restart(args: &RestartArgs, output: &Output) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    let host = args.host.as_str();
    let is_witness = host == WITNESS;
    let program = if is_witness { WITNESS_PROGRAM } else { KEEPER };
    let processes = lab.processes(host)?;
    if processes.list()?.iter().any(|p| p.program.starts_with(program)) {
        let what = if processes.frozen()? { "is frozen, not dead: `ninefold-lab thaw` lets it go on" } else { "runs" };
        return Err(LabError::Host { host: host.into(), what: what.into() }.into());
    }
    let bar = crate::progress::spinner(&format!("host {host} comes back"));
    let dark = Network::ALL
        .into_iter()
        .filter(|n| lab.topology().is_on(host, *n))
        .map(|n| lab.link_state(host, n))
        .collect::<Result<Vec<_>, _>>()?
        .contains(&LinkState::HostDown);
    if dark {
        lab.restart_host_with_faults(host, &args.faults)?;
    } else if lab.has_keeper(host) {
        lab.start_keeper_with_faults(host, &args.faults)?;
    }
    if is_witness {
        lab.start_witness()?;
    }
    bar.finish_and_clear();
    done(output, &lab, Some(host), "restart", format!("host {host} is back"))
}

pub fn freeze(args: &FreezeArgs, output: &Output) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    let (verb, text) = if args.disk {
        lab.freeze_disk(&args.host)?;
        ("freeze_disk", format!("host {}: its disk hangs", args.host))
    } else {
        lab.freeze(&args.host)?;
        ("freeze", format!("host {} is frozen", args.host))
    };
    done(output, &lab, Some(&args.host), verb, text)
}

pub fn thaw(args: &ThawArgs, output: &Output) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    let (verb, text) = if args.disk {
        lab.thaw_disk(&args.host)?;
        ("thaw_disk", format!("host {}: its disk answers again", args.host))
    } else {
        lab.thaw(&args.host)?;
        ("thaw", format!("host {} goes on", args.host))
    };
    done(output, &lab, Some(&args.host), verb, text)
}

pub fn cut(args: &CutArgs, output: &Output) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    let how = if args.blackhole { Cut::Blackhole } else { Cut::Carrier };
    for network in args.network.networks() {
        lab.cut(&args.host, *network, how)?;
    }
    let way = if args.blackhole { " (a black hole)" } else { "" };
    done(output, &lab, Some(&args.host), "cut", format!("host {}: {} cut{way}", args.host, args.network.words()))
}

pub fn heal(args: &HealArgs, output: &Output) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    for network in args.network.networks() {
        lab.heal(&args.host, *network)?;
    }
    done(output, &lab, Some(&args.host), "heal", format!("host {}: {} healed", args.host, args.network.words()))
}

pub fn witness(args: &WitnessArgs, output: &Output) -> Result<(), CommandError> {
    let (which, verb) = match &args.verb {
        WitnessVerb::Start(which) => (which, "witness_start"),
        WitnessVerb::Stop(which) => (which, "witness_stop"),
        WitnessVerb::Kill(which) => (which, "witness_kill"),
    };
    let lab = which.attach()?;
    let runs = lab.processes(WITNESS)?.list()?.iter().any(|p| p.program.starts_with(WITNESS_PROGRAM));
    let starts = matches!(args.verb, WitnessVerb::Start(_));
    if runs == starts {
        let what = if runs { "the witness runs already" } else { "no witness runs here" };
        return Err(LabError::Host { host: WITNESS.into(), what: what.into() }.into());
    }
    let text = match &args.verb {
        WitnessVerb::Start(_) => {
            lab.start_witness()?;
            "the witness runs"
        }
        WitnessVerb::Stop(_) => {
            lab.stop_witness()?;
            "the witness has ended"
        }
        WitnessVerb::Kill(_) => {
            lab.kill_witness()?;
            "the witness is dead"
        }
    };
    done(output, &lab, Some(WITNESS), verb, text.into())
}
