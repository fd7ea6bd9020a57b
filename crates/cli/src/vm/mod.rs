//! `ninefold vm`: a fault-tolerant VM.
//!
//! * [`keepers`]: who is asked ([`choose`]: about which VM) · [`status`], [`events`] ([`repeats`]), [`checkpoints`]: looking · [`follow`]: what comes from one moment on
//! * [`operation`]: what takes its time, with a bar
//! * [`info`]: what the guest's agent tells
//! * [`trial`], [`dump`]: images on trial; the guest's memory into a file · [`standing`]: shutdown, pause, resume, wake
//! * [`new_id`]: an id for a new VM · [`rename`], [`retire`]: another name, and the end
//! * [`control`] ([`handover`], [`awaited`]): start, stop, protect, switch over … · [`console`]: its serial console

mod awaited;
mod checkpoints;
mod choose;
mod console;
mod control;
mod dump;
pub mod events;
mod follow;
mod handover;
mod info;
pub mod keepers;
mod new_id;
mod operation;
mod recover;
mod rename;
mod repeats;
mod retire;
mod snapshot;
mod standing;
mod status;
mod trial;

use clap::{Args, Subcommand};
use ninefold_shell::Output;

use crate::error::CliError;

/// A fault-tolerant VM: its state, its life, its console
///
/// A command asks the VM's keeper on this host, and no other is needed: it is found by --vm VM or NINEFOLD_VM, or by itself where
/// this host keeps one VM. VM is its name, its id, or the beginning of its id.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm status --watch\n  \
    ninefold vm switchover\n  \
    ninefold vm console\n  \
    ninefold vm status --vm db")]
pub struct VmArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Status(status::StatusArgs),
    Info(info::InfoArgs),
    Start(control::StartArgs),
    Stop(control::StopArgs),
    Shutdown(standing::ShutdownArgs),
    Pause(standing::PauseArgs),
    Resume(standing::ResumeArgs),
    Wake(standing::WakeArgs),
    Protect(control::ProtectArgs),
    Unprotect(control::UnprotectArgs),
    Switchover(control::SwitchoverArgs),
    Reset(control::ResetArgs),
    Dump(dump::DumpArgs),
    Snapshot(snapshot::SnapshotArgs),
    Restore(snapshot::RestoreArgs),
    Recover(recover::RecoverArgs),
    Trial(trial::TrialArgs),
    CommitImage(trial::CommitImageArgs),
    FallBack(trial::FallBackArgs),
    Events(events::EventsArgs),
    Operations(operation::OperationsArgs),
    Checkpoints(checkpoints::CheckpointsArgs),
    Console(console::ConsoleArgs),
    Epochs(control::EpochsArgs),
    NewId(new_id::NewIdArgs),
    Retire(retire::RetireArgs),
    Rename(rename::RenameArgs),
}

pub fn run(args: VmArgs, output: &Output) -> Result<(), CliError> {
    match args.verb {
        Verb::Status(args) => status::run(&args, output),
        Verb::Info(args) => info::run(&args, output),
        Verb::Start(args) => control::start(&args, output),
        Verb::Stop(args) => control::stop(&args, output),
        Verb::Shutdown(args) => standing::shutdown(&args, output),
        Verb::Pause(args) => standing::pause(&args, output),
        Verb::Resume(args) => standing::resume(&args, output),
        Verb::Wake(args) => standing::wake(&args, output),
        Verb::Protect(args) => control::protect(&args, output),
        Verb::Unprotect(args) => control::unprotect(&args, output),
        Verb::Switchover(args) => control::switchover(&args, output),
        Verb::Reset(args) => control::reset(&args, output),
        Verb::Dump(args) => dump::run(&args, output),
        Verb::Snapshot(args) => snapshot::take(&args, output),
        Verb::Restore(args) => snapshot::restore(&args, output),
        Verb::Recover(args) => recover::run(&args, output),
        Verb::Trial(args) => trial::run(&args, output),
        Verb::CommitImage(args) => trial::commit_image(&args, output),
        Verb::FallBack(args) => trial::fall_back(&args, output),
        Verb::Events(args) => events::run(&args, output),
        Verb::Operations(args) => operation::run(&args, output),
        Verb::Checkpoints(args) => checkpoints::run(&args, output),
        Verb::Console(args) => console::run(&args),
        Verb::Epochs(args) => control::epochs(&args, output),
        Verb::NewId(args) => new_id::run(&args, output),
        Verb::Retire(args) => retire::run(&args, output),
        Verb::Rename(args) => rename::run(&args, output),
    }
}
