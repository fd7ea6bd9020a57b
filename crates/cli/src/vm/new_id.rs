//! `ninefold vm new-id`.

use clap::Args;
use ninefold_keeper::random::new_vm_id;
use ninefold_model::VmId;
use ninefold_shell::{Output, ShellError};
use serde::Serialize;

use crate::error::CliError;

/// Print an id for a new VM
///
/// A random UUID, as `uuidgen -r` makes one. It belongs into `id` in the configuration of each of the VM's hosts, the same on all of them,
/// and never into that of another VM, not even of one that takes this one's name when it is gone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm new-id\n  \
    ninefold vm new-id --json | jq -r .id")]
pub struct NewIdArgs {}

#[derive(Debug, Serialize)]
struct Made {
    id: VmId,
}

pub fn run(_: &NewIdArgs, output: &Output) -> Result<(), CliError> {
    let id = new_vm_id().map_err(ShellError::io("read random numbers"))?;
    output.show(&Made { id }, || id.to_string())?;
    Ok(())
}
