//! The `ninefold-lab` command: for those who develop Ninefold or want to see it work. Operators do not need it.
//!
//! * [`up`]: making a lab · [`labs`]: finding, listing and removing them · [`status`] ([`picture`]): looking at one · [mod@env]: asking its keepers
//! * [`faults`]: kill, freeze, cut and their opposites · [`exec`]: a command inside a host
//! * [`demo`]: the main job from beginning to end · [mod@bench]: what it costs · [`chaos`]: random faults for a time
//! * [`error`]: what went wrong, and what to do · [`interrupt`]: nothing stays half-made · [`progress`]: how far a boot is

mod bench;
mod chaos;
mod demo;
mod env;
mod error;
mod exec;
mod faults;
mod interrupt;
mod labs;
mod picture;
mod progress;
mod status;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ninefold_shell::{Failure, Output};

use crate::error::{CommandError, NAME};

/// Hosts in network namespaces on this machine, and what can befall them; the demo, benchmarks, random faults
///
/// A lab has two hosts for VMs (a and b), the witness's host (w), a client, a public network and a replication network.
/// It stays until `ninefold-lab down`.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        ninefold-lab demo               a VM that survives its host, three times over\n  \
        ninefold-lab bench              what protection costs, measured\n  \
        ninefold-lab up                 two hosts, a witness, a client and a protected VM on this machine\n  \
        eval \"$(ninefold-lab env)\"      `ninefold vm` asks the keepers of this lab\n  \
        ninefold-lab kill a host        pull the plug of the VM's host\n  \
        ninefold-lab status             how the hosts are\n  \
        ninefold-lab down               remove everything\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)]
struct Args {
    /// Print JSON instead of text for people; an error is one JSON object on standard error.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(up::UpArgs),
    Down(labs::DownArgs),
    Status(status::StatusArgs),
    Env(env::EnvArgs),
    Kill(faults::KillArgs),
    Restart(faults::RestartArgs),
    Freeze(faults::FreezeArgs),
    Thaw(faults::ThawArgs),
    Cut(faults::CutArgs),
    Heal(faults::HealArgs),
    Witness(faults::WitnessArgs),
    Exec(exec::ExecArgs),
    List(labs::ListArgs),
    Sweep(labs::SweepArgs),
    Demo(demo::DemoArgs),
    Bench(bench::BenchArgs),
    Chaos(chaos::ChaosArgs),
    #[command(hide = true)]
    Unmake(interrupt::UnmakeArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    ninefold_logging::stderr::begin("error");
    let output = Output::new(args.json);
    match run(args.verb, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            interrupt::wait_if_unmaking();
            error.tell(NAME, args.json);
            error.exit_code()
        }
    }
}

fn run(verb: Verb, output: &Output) -> Result<(), CommandError> {
    match verb {
        Verb::Up(args) => up::run(&args, output),
        Verb::Down(args) => labs::down(&args, output),
        Verb::Status(args) => status::run(&args, output),
        Verb::Env(args) => env::run(&args, output),
        Verb::Kill(args) => faults::kill(&args, output),
        Verb::Restart(args) => faults::restart(&args, output),
        Verb::Freeze(args) => faults::freeze(&args, output),
        Verb::Thaw(args) => faults::thaw(&args, output),
        Verb::Cut(args) => faults::cut(&args, output),
        Verb::Heal(args) => faults::heal(&args, output),
        Verb::Witness(args) => faults::witness(&args, output),
        Verb::Exec(args) => exec::run(&args),
        Verb::List(_) => labs::list(output),
        Verb::Sweep(_) => labs::sweep(output),
        Verb::Demo(args) => demo::run(&args, output),
        Verb::Bench(args) => bench::run(&args, output),
        Verb::Chaos(args) => chaos::run(&args, output),
        Verb::Unmake(args) => interrupt::unmake(&args),
    }
}
