//! What a snapshot costs a guest, over its memory and over how fast it writes to it.

use std::time::{Duration, Instant};

use ninefold_control::{FreezeChoice, Request};
use ninefold_model::event::{EventKind, SnapshotFigures};
use serde::{Deserialize, Serialize};

use super::plan::Mode;
use super::subject::Subject;
use crate::boot::VmOptions;
use crate::config::LabConfig;
use crate::error::LabError;

/// What the guest is to write, 10^6 bytes a second: nothing, so much, or as much as it can.
const RATES: [Option<u32>; 3] = [None, Some(100), Some(0)];
/// Of the guest's memory, what it writes to, again and again: a half. The smallest guest has little more to give.
const WRITTEN: u64 = 2;
/// How long it is watched how fast it writes.
const WATCHED: Duration = Duration::from_secs(1);
/// What a snapshot may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// One snapshot of an unprotected guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    pub memory_mib: u64,
    /// Of it, what the guest had written to, and was writing to again and again.
    pub written_mib: u64,
    /// What it wrote before the snapshot, 10^6 bytes a second; and while it was taken.
    pub dirty_mb_s: u64,
    pub dirty_meanwhile_mb_s: u64,
    /// How long it stood still.
    pub pause_us: u64,
    /// How long its writes waited in all until what they wrote over was read; 0 in results of before it was measured.
    #[serde(default)]
    pub waited_us: u64,
    /// The whole snapshot.
    pub total_ms: u64,
    /// The file.
    pub file_mib: u64,
}

/// Boots a guest of this size and takes snapshots of it while it writes.
///
/// # Errors
/// A lab or a guest that does not come up; a snapshot that fails.
pub fn measure(config: &LabConfig, vm: &VmOptions) -> Result<Vec<SnapshotRow>, LabError> {
    let memory_mib = vm.memory_mib;
    let written_mib = memory_mib / WRITTEN;
    let mut subject = Subject::up(config, vm)?;
    subject.enter(Mode::Unprotected)?;
    subject.workload.fill(written_mib)?;
    let mut rows = Vec::new();
    for (number, rate) in RATES.into_iter().enumerate() {
        // The guest counts what it writes while it is told to write.
        let (mut dirty, mut meanwhile, mut before) = (0.0, 0.0, None);
        if let Some(mbps) = rate {
            subject.workload.dirty_all(written_mib, mbps)?;
            dirty = subject.workload.dirty_rate(WATCHED)?;
            before = Some((subject.workload.dirtied()?, Instant::now()));
        }
        let figures = take(&mut subject, number)?;
        if let Some((pages, begin)) = before {
            meanwhile = (subject.workload.dirtied()? - pages) / begin.elapsed().as_secs_f64();
            subject.workload.stop()?;
        }
        rows.push(SnapshotRow {
            memory_mib,
            written_mib,
            dirty_mb_s: f64::round(dirty) as u64,
            dirty_meanwhile_mb_s: f64::round(meanwhile) as u64,
            pause_us: figures.pause_us,
            waited_us: figures.waited_us,
            total_ms: figures.took_ms,
            file_mib: figures.bytes.div_ceil(1 << 20),
        });
    }
    Ok(rows)
}

fn take(subject: &mut Subject, number: usize) -> Result<SnapshotFigures, LabError> {
    let mark = subject.vm.events.mark();
    let name = format!("s{number}");
    let name = name.parse().map_err(|_| LabError::NotFound(name))?;
    subject.lab.ask(&subject.primary, &Request::Snapshot { name, parent: None, freeze: FreezeChoice::Never })?;
    let ended = |e: &EventKind| matches!(e, EventKind::SnapshotTaken { .. } | EventKind::SnapshotFailed { .. });
    let event = subject.vm.events.wait_for(mark, Instant::now() + PATIENCE, |e| ended(&e.kind));
    match event.map(|event| event.kind) {
        Some(EventKind::SnapshotTaken { snapshot, .. }) => Ok(snapshot),
        Some(EventKind::SnapshotFailed { reason, .. }) => Err(subject.timeout(&format!("snapshot: {reason}"))),
        _ => Err(subject.timeout("snapshot")),
    }
}
