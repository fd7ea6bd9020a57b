//! The `ninefold` command.
//!
//! * [`vm`]: a fault-tolerant VM: its state, its life, its console
//! * [`storage`]: volumes, golden images and snapshots in a host's pool
//! * [`witness`]: the records that the witness keeps
//! * [`ca`]: the authority by whose certificates hosts know each other
//! * [`doctor`]: what this host can do
//! * [`error`]: what went wrong, and what to do

mod ca;
mod doctor;
mod error;
mod storage;
mod vm;
mod witness;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ninefold_shell::{Failure, Output};

use crate::error::{CliError, NAME};

/// Fault-tolerant VMs on stock QEMU: a VM goes on when the host under it does not.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        ninefold doctor                 what this host can do\n  \
        ninefold vm status --watch      how the VM is\n  \
        ninefold vm events              what happened to it\n  \
        ninefold vm switchover          hand it to its backup, as for maintenance\n  \
        ninefold volume list            the disks of VMs in this host's pool\n  \
        ninefold witness list           who may speak for which VM\n  \
        ninefold ca list                the certificates that hosts have been issued\n\n\
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
    Vm(vm::VmArgs),
    Volume(storage::volume::VolumeArgs),
    Image(storage::image::ImageArgs),
    Snapshot(storage::snapshot::SnapshotArgs),
    Ca(ca::CaArgs),
    Witness(witness::WitnessArgs),
    Doctor(doctor::DoctorArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    ninefold_logging::stderr::begin("error");
    let output = Output::new(args.json);
    let done: Result<(), CliError> = match args.noun {
        Noun::Vm(args) => vm::run(args, &output),
        Noun::Volume(args) => storage::volume::run(args, &output),
        Noun::Image(args) => storage::image::run(args, &output),
        Noun::Snapshot(args) => storage::snapshot::run(args, &output),
        Noun::Ca(args) => ca::run(args, &output),
        Noun::Witness(args) => witness::run(&args, &output),
        Noun::Doctor(args) => doctor::run(&args, &output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.tell(NAME, args.json);
            error.exit_code()
        }
    }
}
