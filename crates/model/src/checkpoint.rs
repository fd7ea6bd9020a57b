//! What is measured of a checkpoint.

use serde::{Deserialize, Serialize};

/// One checkpoint as measured, microseconds and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CheckpointRecord {
    pub seq: u64,
    pub epoch: u64,
    /// From the end of the pause before to the start of this one.
    pub run_us: u64,
    pub stop_us: u64,
    pub save_us: u64,
    pub scan_us: u64,
    pub copy_us: u64,
    pub cont_us: u64,
    /// From before `stop` to after `cont`.
    pub pause_us: u64,
    pub dirty_pages: u64,
    /// Of these, copied before the pause; and how many pages were copied (again or only) in the pause then.
    #[serde(default)]
    pub early_pages: u64,
    #[serde(default)]
    pub again_pages: u64,
    /// Held in the pause as they were, and copied when the guest ran again: there was much to copy.
    #[serde(default)]
    pub held_pages: u64,
    pub state_bytes: u64,
    pub wire_bytes: u64,
    /// From the end of the pause to the backup's acknowledgement.
    pub commit_us: u64,
}
