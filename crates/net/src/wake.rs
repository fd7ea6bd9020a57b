//! How the checkpoint thread hears that output waits.

use std::sync::Arc;

/// Called by a port's or channel's own thread, with no lock held:
///
/// * at the first output held in a fresh epoch, and
/// * when a gate becomes half full,
///
/// (not for what `drain_and_close` reads: whoever calls that is awake), so that the keeper can take the next checkpoint soon. It must be short and must not block; ringing a condition
/// variable or writing to an eventfd is meant. It may call back into the port or channel.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A [`Wake`] that does nothing.
#[must_use]
pub fn nobody() -> Wake {
    Arc::new(|| {})
}
