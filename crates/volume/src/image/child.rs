//! Children that do not outlive us.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// Has the kernel kill the command's process when the *thread* that starts it ends, however that comes about
/// (PR_SET_PDEATHSIG, prctl(2)). So the thread that starts it has to stay for as long as the child is wanted.
pub(super) fn die_with_thread(command: &mut Command) {
    let parent = getpid();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above.
        if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: `prepare` makes only system calls, no allocation and no locks, as is right after a fork.
    unsafe { command.pre_exec(prepare) };
}
