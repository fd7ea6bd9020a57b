//! `ninefold-lab env`.

use clap::Args;
use ninefold_lab::lab::RUN_DIR;
use ninefold_shell::Output;
use serde::Serialize;

use crate::error::CommandError;
use crate::labs::Which;

/// Print what tells `ninefold vm` to ask the keepers of a lab
///
/// A line for a shell. Inside of a host (`ninefold-lab exec`) the command asks that host's own keeper without it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    eval \"$(ninefold-lab env)\" && ninefold vm status\n  \
    ninefold-lab env --name demo --json | jq -r .NINEFOLD_RUN_DIR")]
pub struct EnvArgs {
    #[command(flatten)]
    which: Which,
}

/// The variables.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(rename = "NINEFOLD_RUN_DIR")]
    run_dirs: String,
}

pub fn run(args: &EnvArgs, output: &Output) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    let shown = Shown { run_dirs: lab.run_dirs().ok_or_else(|| CommandError::NoVm { lab: lab.name().to_owned() })? };
    // The name of a lab, and of its hosts, has no character that a shell knows.
    output.show(&shown, || format!("export {RUN_DIR}={}", shown.run_dirs))?;
    Ok(())
}
