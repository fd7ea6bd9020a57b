//! What is seen at a tick.

use std::sync::atomic::Ordering;

use ninefold_core::disk_watch::{Failure, Look};
use ninefold_core::event::{Frames, Observed, VolumeSeen};
use ninefold_model::status::Counters;

use super::Runtime;
use crate::devices::disks::Disk;

impl Runtime {
    /// Looks at what the core cannot be told of by those whom it concerns: silence, a disk that does not answer, an uplink.
    pub(super) fn observe(&self) -> Observed {
        let parts = &self.parts;
        let uplink =
            parts.config.host.uplink.as_ref().is_none_or(|name| ninefold_net::uplink_running(name).unwrap_or(true));
        self.uplink.store(uplink, Ordering::Relaxed);
        let volume = |d: &Disk| VolumeSeen {
            look: Look {
                failure: d.served.failure().map(|f| Failure { reason: f.reason, out_of_space: f.out_of_space }),
                stalled: d.served.stalled(),
            },
            held: d.served.held(),
        };
        // In this order: see `Observed::primary_echo`.
        let primary_echo = self.primary.as_ref().map_or(0, |p| p.echo.load(Ordering::Acquire));
        let primary_silence = self.primary.as_ref().map(|p| (p.session, p.handle.silence()));
        let mut counters = Counters::default();
        parts.guest_io.count(&mut counters);
        Observed {
            uplink,
            silences: self.sessions.iter().map(|(name, open)| (*name, open.session.handle.silence())).collect(),
            primary_silence,
            primary_echo,
            logs: self.logs.iter().map(|(id, log)| (*id, log.at_work())).collect(),
            volumes: parts.disks.iter().map(volume).collect(),
            held: parts.disks.held(),
            full: parts.disks.is_full(),
            frames: Frames {
                out: counters.frames_out,
                incoming: counters.frames_in,
                held: counters.frames_held,
                dropped: counters.frames_dropped,
                stale: counters.frames_stale,
            },
            twins: parts.guest_io.twins().collect(),
        }
    }
}
