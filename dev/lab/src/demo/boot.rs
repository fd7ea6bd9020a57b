//! Booting a lab's VM with word of how far it is.

use std::time::{Duration, Instant};

use ninefold_model::event::{EventKind, Position};
use ninefold_model::status::{Role, SyncProgress};

use crate::boot::{BootedVm, VmOptions};
use crate::error::LabError;
use crate::lab::Lab;

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// What a boot is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootPhase {
    /// Witness and keepers are being started.
    Starting,
    /// The guest boots, until its service answers. Its memory may be copied meanwhile.
    Booting,
    /// The guest answers; its memory is being copied to the backup.
    Syncing,
}

/// How far a boot is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BootProgress {
    pub phase: BootPhase,
    pub elapsed: Duration,
    pub sync: Option<SyncProgress>,
}

/// [`Lab::boot_vm`], with word of how far it is a few times a second.
///
/// # Errors
/// Those of [`Lab::boot_vm`]; [`LabError::Io`] when the guest has not been built.
pub fn boot(
    lab: &Lab,
    host: &str,
    options: &VmOptions,
    mut hear: impl FnMut(BootProgress),
) -> Result<BootedVm, LabError> {
    // Before anything is started.
    options.guest.dir()?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let booting = scope.spawn(|| lab.boot_vm(host, options));
        while !booting.is_finished() {
            hear(look(lab, host, begin.elapsed()));
            // The boot has no events between its beginning and its end; this is for people's eyes only.
            std::thread::sleep(LOOK);
        }
        booting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// How long the first copy to the backup took, by the primary's own account: it may have been made while the guest
/// booted.
pub fn first_copy(booted: &BootedVm) -> Option<Duration> {
    booted.events.all().into_iter().find_map(|e| match e.kind {
        EventKind::Protected { sync_ms, .. } => Some(Duration::from_millis(sync_ms)),
        _ => None,
    })
}

fn look(lab: &Lab, host: &str, elapsed: Duration) -> BootProgress {
    let starting = BootProgress { phase: BootPhase::Starting, elapsed, sync: None };
    let Ok(keeper) = lab.keeper(host) else { return starting };
    let Ok(status) = keeper.status() else { return starting };
    if status.role != Role::Primary {
        return starting;
    }
    // The keeper does not know when the guest's services answer; the copy of its memory shows as soon as there is one.
    let copied = keeper.events(Position::START, Duration::ZERO).is_ok_and(|told| {
        told.events.iter().any(|e| matches!(e.kind, EventKind::SyncStarted { .. } | EventKind::Protected { .. }))
    });
    let phase = if copied { BootPhase::Syncing } else { BootPhase::Booting };
    BootProgress { phase, elapsed, sync: status.sync }
}
