//! An operation that a signal ends in order, so that it leaves nothing half-made.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::error::ShellError;

/// A flag that a first SIGINT, SIGTERM or SIGHUP sets, for an operation that then ends by itself and leaves nothing; a
/// second one ends the process as usual.
///
/// # Errors
/// The handlers cannot be installed.
pub fn stop_flag() -> Result<Arc<AtomicBool>, ShellError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the signal that sets the flag must not find it set.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .map_err(ShellError::io("wait for signals"))?;
    }
    Ok(flag)
}
