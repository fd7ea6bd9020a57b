//! What a pause costs an idle guest, over the memory that it has.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::Mode;
use super::subject::Subject;
use crate::boot::VmOptions;
use crate::config::LabConfig;
use crate::error::LabError;
use ninefold_model::series::Series;

/// Of each guest's memory, what it fills before it is measured, at most, MiB: both hosts of the lab, and so both copies, are on
/// one machine.
const POPULATED_MIB: u64 = 3072;
/// Let the guest come to rest after it was filled: what it no longer writes is then no longer scanned.
const REST: Duration = Duration::from_secs(12);
const EPOCH_MS: u32 = 25;

/// One guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScalingRow {
    pub memory_mib: u64,
    /// Of it, how much the guest has filled, beside what Linux itself uses.
    pub populated_mib: u64,
    pub vcpus: u16,
    pub pause_us_p50: u64,
    pub pause_us_p99: u64,
    pub scan_us_p50: u64,
    /// What it wrote between two checkpoints.
    pub pages_p50: u64,
    pub checkpoints: u64,
}

/// Boots a guest of this size, fills its memory, protects it, and takes its pauses apart while it is idle.
///
/// # Errors
/// A lab or a guest that does not come up, or does not get protected.
pub fn measure(config: &LabConfig, vm: &VmOptions, time: Duration) -> Result<ScalingRow, LabError> {
    let (memory_mib, vcpus) = (vm.memory_mib, vm.vcpus);
    // Linux's own description of a large memory needs 1/64 of it.
    let populated_mib = (memory_mib / 2).min(POPULATED_MIB);
    let mut subject = Subject::up(config, vm)?;
    subject.enter(Mode::Unprotected)?;
    subject.workload.fill(populated_mib)?;
    subject.enter(Mode::Fixed(EPOCH_MS))?;
    std::thread::sleep(REST);
    subject.new_checkpoints()?;
    std::thread::sleep(time);
    let all = subject.new_checkpoints()?;
    let of = |what: fn(&ninefold_model::checkpoint::CheckpointRecord) -> u64| {
        all.iter().map(what).collect::<Series>().summary()
    };
    let pause = of(|c| c.pause_us);
    Ok(ScalingRow {
        memory_mib,
        populated_mib,
        vcpus,
        pause_us_p50: pause.p50,
        pause_us_p99: pause.p99,
        scan_us_p50: of(|c| c.scan_us).p50,
        pages_p50: of(|c| c.dirty_pages).p50,
        checkpoints: pause.count,
    })
}
