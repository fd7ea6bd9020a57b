//! `ninefold-lab exec`.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::thread;

use clap::Args;
use ninefold_shell::ShellError;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::CommandError;
use crate::labs::Which;

/// Run a command inside a host, as one of its processes
///
/// The exit code is the command's. It is frozen and killed with its host.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold-lab exec client -- redis-cli -h 10.9.0.10 ping\n  \
    ninefold-lab exec client -- ping -c 3 10.9.0.10\n  \
    ninefold-lab exec a -- ip -s link")]
pub struct ExecArgs {
    /// a, b, w or client
    host: String,
    #[command(flatten)]
    which: Which,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub fn run(args: &ExecArgs) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    let [program, arguments @ ..] = &args.command[..] else { return Ok(()) };
    let mut command = lab.command(&args.host, program)?;
    command.args(arguments);
    let failed = || format!("run {} on host {}", program.display(), args.host);
    // It has a session of its own, so the terminal's signals reach only us.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(CommandError::io("wait for signals"))?;
    let mut child = command.spawn().map_err(CommandError::io(failed()))?;
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        thread::spawn(move || {
            for signal in signals.forever() {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    // It may have ended at this moment.
                    let _ = kill_process(pid, signal);
                }
            }
        });
    }
    let status = child.wait().map_err(CommandError::io(failed()))?;
    // As shells do it.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    match u8::try_from(code).unwrap_or(1) {
        0 => Ok(()),
        code => Err(ShellError::Child(code).into()),
    }
}
