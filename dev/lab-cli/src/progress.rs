//! Bars for what takes seconds.

use ninefold_lab::demo::{BootPhase, BootProgress};
pub use ninefold_shell::progress::{ProgressBar, spinner};

/// Shows how far a boot is.
pub fn boot(bar: &ProgressBar, progress: &BootProgress) {
    match progress.phase {
        BootPhase::Starting => bar.set_message("starting the witness and the keepers"),
        BootPhase::Booting => bar.set_message("the guest boots"),
        BootPhase::Syncing => ninefold_shell::progress::sync(bar, progress.sync.as_ref()),
    }
}
