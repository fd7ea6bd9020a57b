//! `ninefold vm dump`.

use std::time::Duration;

use clap::Args;
use ninefold_control::Request;
use ninefold_model::event::EventKind;
use ninefold_shell::Output;
use ninefold_shell::progress;

use super::control::tell;
use super::keepers::{Keepers, Where};
use crate::error::CliError;

/// Between two looks at how far it is.
const EVERY: Duration = Duration::from_millis(200);

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
    let keepers = args.at.keepers()?;
    let (keeper, _) = keepers.primary()?;
    let since = Keepers::from(keeper.clone()).marks();
    keeper.client.command(&Request::Dump)?;
    let bar = progress::spinner("memory is written");
    let events = since.follow();
    let end = loop {
        match events.recv_timeout(EVERY) {
            Ok(event) => match &event.kind {
                EventKind::Dumped { .. } => break tell(output, "dump", &keeper.host, Some(event), ""),
                EventKind::DumpFailed { reason } => break Err(CliError::NoDump(reason.clone())),
                EventKind::Lost { reason } | EventKind::Stopped { reason } | EventKind::StoodDown { reason, .. } => {
                    break Err(CliError::NoDump(format!("the VM has ended there: {reason}")));
                }
                _ => {}
            },
            Err(_) => match keeper.client.status() {
                Ok(status) => progress::dump(&bar, status.health.and_then(|h| h.dump).as_ref()),
                Err(error) => break Err(error.into()),
            },
        }
    };
    bar.finish_and_clear();
    end
}
