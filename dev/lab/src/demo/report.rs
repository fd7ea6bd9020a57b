//! What came of a demo. The field names are stable.

use ninefold_model::spec::Accel;
use serde::{Deserialize, Serialize};

use super::fault::Fault;

/// What came of a demo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    /// The first act.
    #[serde(flatten)]
    pub redis: ActReport,
    /// Writes that redis acknowledged to the client.
    pub acked_writes: u64,
    /// Acknowledged writes that are not there at the end or were carried out twice.
    pub acked_writes_lost: u64,
    /// The second act.
    #[serde(flatten)]
    pub database: DatabaseReport,
    /// The whole demo, labs up and down included.
    pub total_ms: f64,
    pub accel: Accel,
    /// QEMU's version.
    pub qemu: String,
    /// Whether the hosts proved who they are and encrypted.
    pub tls: bool,
    /// Of the first act's VM.
    pub vcpus: u16,
    pub memory_mib: u64,
}

/// What came of the failovers of an act. Arrays have one element for each failover, in order; times in milliseconds have
/// fractions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ActReport {
    /// Take-overs that came to their end.
    pub failovers: u32,
    /// What was done to the primary.
    pub faults: Vec<Fault>,
    /// Where the VM ran: the first host, then one for each failover (and one for where it went on after a loss of power).
    pub path: Vec<String>,
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
    /// From asking for the start to the guest's first answer.
    pub boot_ms: f64,
    /// The first copy to the backup; it may be made while the guest boots.
    pub sync_ms: f64,
    /// What was wrong with the client's data, in words.
    pub complaints: Vec<String>,
}

/// What came of the second act.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DatabaseReport {
    /// Transactions whose COMMIT PostgreSQL acknowledged to the client.
    pub transactions_acked: u64,
    /// Acknowledged transactions that are not there whole at the end, and rows that nobody had sent.
    pub transactions_lost: u64,
    /// What the resyncs after the failovers sent of the volume, all together.
    pub resync_bytes: u64,
    /// The same, one by one.
    pub resyncs_bytes: Vec<u64>,
    /// The volume's size.
    pub volume_bytes: u64,
    /// From the return of the power to the first acknowledged transaction.
    pub power_loss_recovery_ms: f64,
    /// Transactions that were under way when the power failed.
    pub power_loss_under_way: u64,
    /// The VM went on by itself, with its memory and its client's connections; otherwise it was started, and booted.
    pub power_loss_by_itself: bool,
    /// Whether the hosts' disks forgot what was not synced, as those of a host without power do.
    pub power_loss_unsynced_dropped: bool,
    /// Its failovers. If the VM had to be started after the loss of power, the connections that it took away do not count as
    /// reset.
    #[serde(rename = "database")]
    pub act: ActReport,
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
        let mut all = self.redis.failures();
        count(&mut all, self.acked_writes_lost, "acknowledged writes lost or repeated");
        if self.acked_writes == 0 {
            all.push("no write was acknowledged".into());
        }
        all.extend(self.database.failures());
        all
    }
}

impl DatabaseReport {
    /// See [`DemoReport::failures`].
    pub fn failures(&self) -> Vec<String> {
        let mut all = self.act.failures();
        count(&mut all, self.transactions_lost, "acknowledged transactions lost or repeated");
        if self.transactions_acked == 0 {
            all.push("no transaction was acknowledged".into());
        }
        all
    }
}

impl ActReport {
    fn failures(&self) -> Vec<String> {
        let mut all = Vec::new();
        count(&mut all, self.connections_reset, "connections reset");
        count(&mut all, self.speakers_overlapped, "turns of a host that was no longer the speaker");
        count(&mut all, self.frames_unobserved, "frames that the observer missed");
        all
    }
}

fn count(all: &mut Vec<String>, n: u64, what: &str) {
    if n > 0 {
        all.push(format!("{n} {what}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean() -> DemoReport {
        DemoReport {
            redis: ActReport::default(),
            acked_writes: 10,
            acked_writes_lost: 0,
            database: DatabaseReport { transactions_acked: 5, ..DatabaseReport::default() },
            total_ms: 1.0,
            accel: Accel::Tcg,
            qemu: "10.0.2".into(),
            tls: true,
            vcpus: 1,
            memory_mib: 256,
        }
    }

    #[test]
    fn only_a_clean_run_has_no_failures() {
        assert!(clean().failures().is_empty());
        let acts = [
            ActReport { connections_reset: 1, ..ActReport::default() },
            ActReport { speakers_overlapped: 1, ..ActReport::default() },
            ActReport { frames_unobserved: 1, ..ActReport::default() },
        ];
        let mut spoilt = vec![
            DemoReport { acked_writes_lost: 1, ..clean() },
            DemoReport { acked_writes: 0, ..clean() },
            DemoReport { database: DatabaseReport { transactions_lost: 1, ..clean().database }, ..clean() },
            DemoReport { database: DatabaseReport::default(), ..clean() },
        ];
        for act in acts {
            spoilt.push(DemoReport { redis: act.clone(), ..clean() });
            spoilt.push(DemoReport { database: DatabaseReport { act, ..clean().database }, ..clean() });
        }
        for report in spoilt {
            assert_eq!(report.failures().len(), 1, "{report:?}");
        }
    }

    #[test]
    fn the_first_act_is_at_the_top_and_the_second_beside_it() {
        let mut report = clean();
        report.redis.failovers = 3;
        report.database.act.failovers = 2;
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["failovers"], &json["database"]["failovers"]), (&3.into(), &2.into()));
        assert_eq!(json["transactions_acked"], 5);
        assert_eq!(serde_json::from_value::<DemoReport>(json).unwrap(), report);
    }
}
