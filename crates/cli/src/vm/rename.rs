//! `ninefold vm rename`: another name for a VM.

use clap::Args;
use ninefold_control::Request;
use ninefold_model::VmName;
use ninefold_shell::Output;

use super::control::tell_outcome;
use super::keepers::Hosts;
use super::operation::carry_out;
use crate::error::CliError;

/// Give a VM another name
///
/// At once, also while it runs, and on all of its hosts: the witness keeps the name, and each host that reaches it calls the VM so within a second, or when it is back.
/// The name in the hosts' configurations does not count from then on. Nothing else changes: what is the VM's own is found by its id. A host on which another VM has the name goes on with the old one
/// (event `not_renamed`).
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm rename db db-old\n  \
    ninefold vm rename 3f0e1c4a web")]
pub struct RenameArgs {
    /// The VM: its name, its id, or 8 or more characters with which its id alone begins
    old: String,
    /// What it is to be called: 1 to 32 lower-case letters, digits and inner hyphens
    new: VmName,
    #[command(flatten)]
    at: Hosts,
}

pub fn run(args: &RenameArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers_of(Some(&args.old))?;
    let keeper = keepers.first()?;
    let event = carry_out(keeper, &Request::Rename { name: args.new.clone() }, "the witness is asked")?;
    tell_outcome(output, "rename", &keeper.host, event)
}
