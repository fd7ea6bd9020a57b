//! The main job through the command: three failovers in each act and a loss of power, nothing lost. Real VMs; needs root
//! and the test guests.

mod fixture;

use fixture::LabName;
use serde_json::Value;

#[test]
fn vms_survive_their_hosts_three_times_over() {
    fixture::build();
    let lab = LabName::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("deep/report.json");
    let printed = fixture::lab().json(&["demo", "--name", lab.name(), "--report", file.to_str().unwrap()]);
    assert_eq!(lab.traces(), Vec::<String>::new());

    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(report, printed, "the file and the standard output say the same");
    assert_eq!(report["failovers"], 3);
    assert_eq!(report["faults"], serde_json::json!(["kill_qemu", "kill_keeper", "kill_host"]));
    assert_eq!(report["path"], serde_json::json!(["a", "b", "a", "b"]));
    for nothing in ["acked_writes_lost", "connections_reset", "speakers_overlapped", "frames_unobserved"] {
        assert_eq!(report[nothing], 0, "{nothing}: {report:#}");
    }
    assert_eq!(report["complaints"], serde_json::json!([]));
    let database = &report["database"];
    assert_eq!(database["faults"], report["faults"]);
    let path = database["path"].as_array().unwrap();
    assert_eq!(path[..4], ["a", "b", "a", "b"]);
    assert_eq!(path.len(), 5, "and where it went on after the loss of power");
    for nothing in ["connections_reset", "speakers_overlapped", "frames_unobserved"] {
        assert_eq!(database[nothing], 0, "{nothing}: {report:#}");
    }
    assert_eq!(report["transactions_lost"], 0, "{report:#}");
    assert_eq!(database["complaints"], serde_json::json!([]));
    let number = |v: &Value, what: &str| v.as_f64().unwrap_or_else(|| panic!("{what} is no number: {report:#}"));
    // At least the answers that are awaited before, between and after the failovers.
    assert!(number(&report["acked_writes"], "acked_writes") >= 1800.0);
    assert!(number(&report["transactions_acked"], "transactions_acked") >= 480.0);
    for act in [&report, database] {
        for each in ["client_gap_ms", "detect_ms", "arbitrate_ms", "load_ms", "resume_ms", "reprotect_ms"] {
            let times = act[each].as_array().unwrap();
            assert_eq!(times.len(), 3, "{each}");
            assert!(times.iter().all(|t| number(t, each) >= 0.0), "{each}");
        }
    }
    let (sent, volume) =
        (number(&report["resync_bytes"], "resync_bytes"), number(&report["volume_bytes"], "volume_bytes"));
    assert!(sent < volume / 10.0, "a resync sends what differs: {sent} of {volume}");
    assert_eq!(report["power_loss_by_itself"], true);
    assert_eq!(report["power_loss_unsynced_dropped"], ninefold_lab::disks::supported());
    assert!(report["client_gap_ms"].as_array().unwrap().iter().all(|t| number(t, "gap") > 0.0));
    for positive in ["epochs", "boot_ms", "sync_ms", "total_ms", "vcpus", "memory_mib", "power_loss_recovery_ms"] {
        assert!(number(&report[positive], positive) > 0.0, "{positive}");
    }
    let pause = |p: &str| number(&report["pause_us"][p], p);
    assert!(0.0 < pause("p50") && pause("p50") <= pause("p99") && pause("p99") <= pause("max"));
    assert!(pause("count") > 0.0);
    assert!(["kvm", "tcg"].contains(&report["accel"].as_str().unwrap()));
    assert!(report["qemu"].as_str().unwrap().contains('.'));
    assert_eq!(report["tls"], true);
}
