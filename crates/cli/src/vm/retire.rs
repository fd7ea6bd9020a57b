//! `ninefold vm retire`: a VM that is to be no more.

use clap::Args;
use ninefold_control::{ClientError, Refusal, Request};
use ninefold_shell::Output;

use super::control::tell_outcome;
use super::keepers::{Hosts, Keeper};
use super::operation::carry_out;
use crate::error::CliError;

/// End a VM for good: it never starts again, on any host
///
/// The witness puts a tombstone in the place of the VM's record, so that no host that comes back later can take the VM for its own. Its name may
/// be another VM's then, which has an id of its own and inherits nothing. The VM must have been stopped, and its last host is the one to ask.
///
/// With --force it is retired although another host has it by the witness's record, or may take it over: for a host that is gone for good. If the VM
/// runs there all the same, it ENDS there as soon as that host hears of the witness, and what was only in its memory is LOST. What is on the hosts' disks
/// stays in any case, volumes, snapshots and logs: remove it by hand, when nobody needs it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm stop --vm db && ninefold vm retire db\n  \
    ninefold vm retire 3f0e1c4a --force              the host that had it is gone for good")]
pub struct RetireArgs {
    /// The VM: its name, its id, or 8 or more characters with which its id alone begins
    name: String,
    /// Retire it although another host may run it: what is only in its memory there is lost
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: Hosts,
}

pub fn run(args: &RetireArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers_of(Some(&args.name))?;
    let mut keeper = keepers.first()?;
    let mut outcome = retire(keeper, args.force);
    // Any keeper knows from the witness which host had the VM last; a lab's others can be asked, too.
    if let Err(CliError::Keeper(ClientError::Refused(Refusal::HeldElsewhere { host: Some(host), .. }))) = &outcome
        && let Ok(last) = keepers.of_host(host.as_str())
    {
        keeper = last;
        outcome = retire(keeper, args.force);
    }
    match outcome {
        Ok(event) => tell_outcome(output, "retire", &keeper.host, event),
        Err(CliError::Keeper(ClientError::Refused(refusal @ Refusal::HeldElsewhere { .. }))) => {
            Err(CliError::NotRetired { vm: args.name.clone(), refusal: Box::new(refusal) })
        }
        Err(error) => Err(error),
    }
}

fn retire(keeper: &Keeper, force: bool) -> Result<Option<ninefold_model::event::EventKind>, CliError> {
    carry_out(keeper, &Request::Retire { force }, "the witness is asked")
}
