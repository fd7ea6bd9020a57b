//! `ninefold vm snapshot` and `ninefold vm restore`.

use clap::{Args, ValueEnum};
use ninefold_control::{ClientError, FreezeChoice, Refusal, Request};
use ninefold_model::SnapshotName;
use ninefold_shell::Output;

use super::control::tell_outcome;
use super::keepers::{Keeper, Where};
use super::operation::carry_out;
use crate::error::CliError;

/// Take a snapshot of a running VM: memory, devices and volumes at one moment
///
/// The guest stands still for one checkpoint, a few milliseconds. The snapshot is in the pool of the host where the VM runs;
/// `ninefold snapshot` lists, exports and removes it there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm snapshot before-upgrade\n  \
    ninefold vm snapshot tuesday --parent monday    keeps only what differs\n  \
    ninefold vm snapshot nightly --freeze require   only with the guest's file systems frozen\n  \
    ninefold vm snapshot nightly --json | jq .event.snapshot.pause_us\n\n\
    With --json: host, event {event, name, snapshot {pause_us, waited_us, took_ms, bytes, pages, pages_in_parent,\n\
    blocks, blocks_in_parent},\n\
    freeze {file_systems (how many were frozen), why_not, thaw (a VM that is started from it is thawed)}; no freeze with --freeze never}.")]
pub struct SnapshotArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: SnapshotName,
    /// A snapshot of the same VM in the same pool: only what differs from it is stored
    #[arg(long, value_name = "NAME")]
    parent: Option<SnapshotName>,
    /// Have the guest's agent freeze its file systems for the moment of the snapshot
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    freeze: Freeze,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Freeze {
    /// If it does so; the snapshot says whether it did, and why not
    #[default]
    Auto,
    /// Do not ask it
    Never,
    /// Without that there is no snapshot
    Require,
}

impl From<Freeze> for FreezeChoice {
    fn from(freeze: Freeze) -> Self {
        match freeze {
            Freeze::Auto => Self::Auto,
            Freeze::Never => Self::Never,
            Freeze::Require => Self::Require,
        }
    }
}

/// Start a VM that runs nowhere from a snapshot: memory, devices and volumes as they were
///
/// All of the snapshot is verified before anything is touched; then the VM's volumes on this host are overwritten. The witness is
/// asked as for a boot. With --clone the snapshot may be another VM's: the guest in it keeps its addresses, so the clone belongs
/// on another bridge than the original.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm stop && ninefold vm restore before-upgrade --host a\n  \
    ninefold vm restore golden --clone --vm copy")]
pub struct RestoreArgs {
    /// The snapshot
    name: SnapshotName,
    /// Where; without it the first host whose keeper answers
    #[arg(long)]
    host: Option<String>,
    /// It is a snapshot of another VM
    #[arg(long)]
    clone: bool,
    /// Although the witness says that the VM may live elsewhere: only when you know that it does not
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: Where,
}

pub fn take(args: &SnapshotArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let (keeper, _) = keepers.primary()?;
    let request =
        Request::Snapshot { name: args.name.clone(), parent: args.parent.clone(), freeze: args.freeze.into() };
    wait(&keeper, &request, "snapshot", output, CliError::NoSnapshot)
}

pub fn restore(args: &RestoreArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let keeper = match &args.host {
        Some(host) => keepers.of_host(host)?.clone(),
        None => keepers.first()?.clone(),
    };
    let request = Request::Restore { name: args.name.clone(), force: args.force, clone: args.clone };
    wait(&keeper, &request, "restore", output, CliError::NoSnapshot)
}

/// Has it done, with a bar. What comes to nothing fails with `failed`.
pub(super) fn wait(
    keeper: &Keeper,
    request: &Request,
    what: &'static str,
    output: &Output,
    failed: fn(String) -> CliError,
) -> Result<(), CliError> {
    match carry_out(keeper, request, "memory is copied") {
        Ok(event) => tell_outcome(output, what, &keeper.host, event),
        Err(CliError::Keeper(ClientError::Refused(
            Refusal::Failed { reason } | Refusal::LogUnusable { reason } | Refusal::VmEnded { reason },
        ))) => Err(failed(reason)),
        Err(error) => Err(error),
    }
}
