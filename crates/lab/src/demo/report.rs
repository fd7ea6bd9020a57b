//! What came of a demo. The field names are stable.

use ninefold_model::spec::Accel;
use serde::{Deserialize, Serialize};

use super::fault::Fault;

/// What came of a demo. Arrays have one element for each failover, in order; times in milliseconds have fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    /// Take-overs that came to their end.
    pub failovers: u32,
    /// What was done to the primary.
    pub faults: Vec<Fault>,
    /// Where the VM ran: the first host, then one for each failover.
    pub path: Vec<String>,
    /// Writes that the server acknowledged to the client.
    pub acked_writes: u64,
    /// Acknowledged writes that are not there at the end or were carried out twice.
    pub acked_writes_lost: u64,
    /// TCP connections of the client that broke.
    pub connections_reset: u64,
    /// The longest time without an answer to the client.
    pub client_gap_ms: Vec<f64>,
    /// From the last sign of life to suspicion.
    pub detect_ms: Vec<f64>,
    /// From suspicion to the witness's answer.
    pub arbitrate_ms: Vec<f64>,
    /// Finishing the checkpoint and loading it.
    pub load_ms: Vec<f64>,
    /// From loaded to running.
    pub resume_ms: Vec<f64>,
    /// From the fault to being protected again.
    pub reprotect_ms: Vec<f64>,
    /// Checkpoints committed in all.
    pub epochs: u64,
    /// Pauses of the guest, microseconds.
    pub pause_us: PauseReport,
    /// Turns of a host that was no longer the VM's speaker, as seen on the public network.
    pub speakers_overlapped: u64,
    /// Frames that the observer could not keep: anything but 0, and `speakers_overlapped` proves nothing.
    pub frames_unobserved: u64,
    /// From asking for the start to redis's first answer.
    pub boot_ms: f64,
    /// The first copy to the backup; it may be made while the guest boots.
    pub sync_ms: f64,
    /// The whole demo, lab up and down included.
    pub total_ms: f64,
    pub accel: Accel,
    /// QEMU's version.
    pub qemu: String,
    /// Whether the hosts proved who they are and encrypted.
    pub tls: bool,
    pub vcpus: u16,
    pub memory_mib: u64,
    /// What was wrong with the client's data, in words.
    pub complaints: Vec<String>,
}

/// Pauses of the guest over all checkpoints that were measured, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PauseReport {
    /// How many checkpoints were measured: a killed keeper takes its latest measurements with it.
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl DemoReport {
    /// What speaks against it, in words. Empty: nothing was lost, nothing reset, and nobody spoke out of turn.
    pub fn failures(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut count = |n: u64, what: &str| {
            if n > 0 {
                all.push(format!("{n} {what}"));
            }
        };
        count(self.acked_writes_lost, "acknowledged writes lost or repeated");
        count(self.connections_reset, "connections reset");
        count(self.speakers_overlapped, "turns of a host that was no longer the speaker");
        count(self.frames_unobserved, "frames that the observer missed");
        if self.acked_writes == 0 {
            all.push("no write was acknowledged".into());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean() -> DemoReport {
        DemoReport {
            failovers: 1,
            faults: vec![Fault::KillQemu],
            path: vec!["a".into(), "b".into()],
            acked_writes: 10,
            acked_writes_lost: 0,
            connections_reset: 0,
            client_gap_ms: vec![1.0],
            detect_ms: vec![1.0],
            arbitrate_ms: vec![1.0],
            load_ms: vec![1.0],
            resume_ms: vec![1.0],
            reprotect_ms: vec![1.0],
            epochs: 1,
            pause_us: PauseReport::default(),
            speakers_overlapped: 0,
            frames_unobserved: 0,
            boot_ms: 1.0,
            sync_ms: 1.0,
            total_ms: 1.0,
            accel: Accel::Tcg,
            qemu: "10.0.2".into(),
            tls: true,
            vcpus: 1,
            memory_mib: 256,
            complaints: Vec::new(),
        }
    }

    #[test]
    fn only_a_clean_run_has_no_failures() {
        assert!(clean().failures().is_empty());
        for spoilt in [
            DemoReport { acked_writes_lost: 1, ..clean() },
            DemoReport { connections_reset: 1, ..clean() },
            DemoReport { speakers_overlapped: 1, ..clean() },
            DemoReport { frames_unobserved: 1, ..clean() },
            DemoReport { acked_writes: 0, ..clean() },
        ] {
            assert_eq!(spoilt.failures().len(), 1, "{spoilt:?}");
        }
    }
}
