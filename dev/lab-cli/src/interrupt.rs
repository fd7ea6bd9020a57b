//! An interrupted command leaves nothing half-made.
//!
//! While a lab is being made, SIGINT, SIGTERM and SIGHUP replace this process by `ninefold-lab unmake LAB`, under the same
//! process number. So no thread goes on making what is being removed, the lab's guardian sees its owner's pipe close,
//! and whoever started the command waits until all is gone.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use ninefold_lab::{Lab, LabError};
use ninefold_shell::ShellError;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::CommandError;

/// A signal has come, and the process is about to be replaced.
static UNMAKING: AtomicBool = AtomicBool::new(false);

/// While it lives, a signal takes the lab down.
#[derive(Debug)]
pub struct Armed {
    signals: signal_hook::iterator::Handle,
}

/// From now on a signal takes this lab down, if it is ours.
pub fn take_down_on_signal(lab: &str) -> Result<Armed, CommandError> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(CommandError::io("wait for signals"))?;
    let handle = signals.handle();
    let lab = lab.to_owned();
    thread::spawn(move || {
        if signals.forever().next().is_none() {
            return;
        }
        UNMAKING.store(true, Ordering::SeqCst);
        let program = std::env::current_exe().unwrap_or_else(|_| crate::error::NAME.into());
        let error = Command::new(program).args(["unmake", &lab]).exec();
        // The guardian sees to a lab that was not to stay.
        eprintln!("ninefold-lab: interrupted, and lab '{lab}' may be left ({error}): `ninefold-lab down --name {lab}`");
        std::process::exit(130);
    });
    Ok(Armed { signals: handle })
}

impl Drop for Armed {
    /// What was made is whole; from now on a signal ends the process as usual.
    fn drop(&mut self) {
        self.signals.close();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let _ = signal_hook::flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true)));
        }
    }
}

/// Called before an error is told: one that comes of being replaced is none, and the process has no more to do.
pub fn wait_if_unmaking() {
    while UNMAKING.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Removes the lab that the interrupted command was making.
#[derive(Debug, Args)]
pub struct UnmakeArgs {
    lab: String,
}

/// Takes down the lab that this process (before it was replaced) has begun to make.
pub fn unmake(args: &UnmakeArgs) -> Result<(), CommandError> {
    // A second signal does not leave half of it.
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    eprintln!("\nninefold-lab: interrupted; taking lab '{}' down", args.lab);
    let mut left = None;
    // The guardian is at it too, perhaps; each may find the other's work undone for a moment.
    for _ in 0..100 {
        let lab = match Lab::attach(&args.lab) {
            Ok(lab) if lab.record().owner.pid == std::process::id() => lab,
            // Gone, not yet begun, or another's of the same name.
            _ => {
                left = None;
                break;
            }
        };
        match lab.down() {
            Ok(()) => {
                left = None;
                break;
            }
            Err(LabError::Left { lab, what }) => left = Some(LabError::Left { lab, what }),
            Err(error) => return Err(error.into()),
        }
        thread::sleep(Duration::from_millis(50));
    }
    if let Some(error) = left {
        return Err(error.into());
    }
    // The processes that were started, the guardian among them, are children of this process still.
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::empty()) {}
    let draft = format!(".{}.{}", args.lab, std::process::id());
    let _ = std::fs::remove_dir_all(std::path::Path::new(ninefold_lab::record::LABS).join(draft));
    Err(ShellError::Interrupted.into())
}
