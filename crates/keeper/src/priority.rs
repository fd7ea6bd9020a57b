//! Real-time priority for the threads that others wait for.
//!
//! They work for microseconds at a time, but a guest's output and a host's reputation hang on them: on a busy host a
//! thread of ordinary priority can wait for longer than its peer's patience. QEMU and everything else that these threads
//! start keep the ordinary priority.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static RAISED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the refusal has been told.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Gives the calling thread the lowest real-time priority (sched(7), SCHED_RR), once. Without the privilege it stays as
/// it is, which is logged.
pub fn raise() {
    if RAISED.get() {
        return;
    }
    RAISED.set(true);
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads one sched_param from the pointer, which is valid; 0 is the calling thread.
    let failed = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &parameters) };
    if failed != 0 && !TOLD.swap(true, Ordering::Relaxed) {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "no real-time priority: under load this host may be taken for dead (needs CAP_SYS_NICE)");
    }
}
