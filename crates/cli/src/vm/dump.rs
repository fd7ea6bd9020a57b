//! `ninefold vm dump`.

use clap::Args;
use ninefold_control::{ClientError, Refusal, Request};
use ninefold_shell::Output;

use super::control::tell_outcome;
use super::keepers::Where;
use super::operation::carry_out;
use crate::error::CliError;

/// Write the guest's memory to a file, for a debugger
///
/// The file is made on the host where the VM runs, in the directory `dumps` of its keeper's configuration: an ELF core file
/// for gdb, crash or volatility, as large as the guest's memory. The guest stands still meanwhile. The oldest dumps go.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm dump\n  \
    ninefold vm dump --json | jq -r .event.path")]
pub struct DumpArgs {
    #[command(flatten)]
    at: Where,
}

pub fn run(args: &DumpArgs, output: &Output) -> Result<(), CliError> {
    let (keeper, _) = args.at.keepers()?.primary()?;
    match carry_out(&keeper, &Request::Dump, "memory is written") {
        Ok(event) => tell_outcome(output, "dump", &keeper.host, event),
        Err(CliError::Keeper(ClientError::Refused(Refusal::Failed { reason } | Refusal::VmEnded { reason }))) => {
            Err(CliError::NoDump(reason))
        }
        Err(error) => Err(error),
    }
}
