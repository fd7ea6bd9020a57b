//! The `ninefold` command.
//!
//! * [`lab`]: hosts on this machine, and what can befall them
//! * [`vm`]: a fault-tolerant VM: its state, its life, its console
//! * [`storage`]: volumes, golden images and snapshots in a host's pool
//! * [`doctor`]: what this host can do · [`demo`]: the main job from beginning to end · [`bench`]: what it costs
//! * [`output`]: tables and JSON · [`progress`]: bars · [`picture`]: a lab drawn
//! * [`error`]: what went wrong, and what to do · [`interrupt`]: nothing stays half-made

mod bench;
mod demo;
mod doctor;
mod error;
mod interrupt;
mod lab;
mod output;
mod picture;
mod progress;
mod storage;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::Output;

/// Fault-tolerant VMs on stock QEMU: a VM goes on when the host under it does not.
#[derive(Debug, Parser)]
#[command(
    name = "ninefold",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        ninefold doctor                 what this host can do\n  \
        ninefold demo                   a VM that survives its host, three times over\n  \
        ninefold bench                  what protection costs, measured\n  \
        ninefold lab up                 two hosts, a witness, a client and a protected VM on this machine\n  \
        ninefold vm status --watch      how the VM is\n  \
        ninefold lab kill a host        pull the plug of its host\n  \
        ninefold volume list            the disks of VMs in this host's pool\n  \
        ninefold lab down               remove everything\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)]
struct Args {
    /// Print JSON instead of text for people; an error is one JSON object on standard error.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    Lab(lab::LabArgs),
    Vm(vm::VmArgs),
    Volume(storage::volume::VolumeArgs),
    Image(storage::image::ImageArgs),
    Snapshot(storage::snapshot::SnapshotArgs),
    Doctor(doctor::DoctorArgs),
    Demo(demo::DemoArgs),
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    Unmake(interrupt::UnmakeArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    ninefold_logging::stderr::begin("error");
    let output = Output::new(args.json);
    let done = match args.noun {
        Noun::Lab(args) => lab::run(args, &output),
        Noun::Vm(args) => vm::run(args, &output),
        Noun::Volume(args) => storage::volume::run(args, &output),
        Noun::Image(args) => storage::image::run(args, &output),
        Noun::Snapshot(args) => storage::snapshot::run(args, &output),
        Noun::Doctor(args) => doctor::run(&args, &output),
        Noun::Demo(args) => demo::run(&args, &output),
        Noun::Bench(args) => bench::run(&args, &output),
        Noun::Unmake(args) => interrupt::unmake(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            interrupt::wait_if_unmaking();
            error.tell(args.json);
            error.exit_code()
        }
    }
}
