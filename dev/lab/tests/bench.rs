//! The quick benchmarks, whole, on the real thing. That it writes everything, not how fast anything is.

mod fixture;

use std::time::{Duration, Instant};

use ninefold_lab::bench::plan::{Break, LARGE_MIB, Mode, SIZES, SNAPSHOT_SIZES};
use ninefold_lab::bench::rebind::{self, Rebind, RebindFigures};
use ninefold_lab::bench::subject::Subject;
use ninefold_lab::bench::{self, Options, scaling, snapshots, volume};
use ninefold_lab::{LabConfig, VmOptions};
use serde_json::Value;

#[test]
#[ignore = "takes three to four minutes"]
fn a_quick_run_writes_a_complete_report() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = None;
    let options = Options { quick: true, qemu: None };
    let report = bench::run(&options, &mut |p| {
        println!("{:4} s of {} s: {}", p.done.as_secs(), p.total.as_secs(), p.what);
        last = Some(p.clone());
    })
    .unwrap();
    let last = last.unwrap();
    assert_eq!((last.done, last.left.is_zero()), (last.total, true), "progress ends at its end");
    let out = std::env::var_os("NINEFOLD_BENCH_OUT").map_or_else(|| dir.path().to_owned(), Into::into);
    let files = bench::write(&report, &out).unwrap();
    assert!(files.iter().filter(|f| f.extension().is_some_and(|e| e == "svg")).count() >= 5);
    for file in &files {
        assert!(std::fs::metadata(file).unwrap().len() > 500, "{}", file.display());
    }
    let json: Value = serde_json::from_slice(&std::fs::read(out.join("ft.json")).unwrap()).unwrap();
    let positive = [
        "/ratios/redis_set_pipelined",
        "/ratios/redis_set",
        "/ratios/redis_get",
        "/ratios/cpu",
        "/ratios/memory",
        "/ping_us/unprotected_p50",
        "/ping_us/protected_p50",
        "/ping_us/protected_p99",
        "/pause_us/idle/p50",
        "/pause_us/idle/p99",
        "/pause_us/dirty_2000/p50",
        "/pause_us/dirty_2000/p99",
        "/failover_ms/p50",
        "/failover_ms/p99",
        "/failover_ms/max",
        "/rebind_ms/cut_300ms/0/p50",
        "/rebind_ms/cut_300ms/1/max",
        "/rebind_ms/backup_keeper_restarted/0/max",
        "/rebind_ms/backup_keeper_restarted/1/p50",
        "/sync_mb_per_s/median",
        "/tls/rows/0/ratio/median",
        "/machine/cores",
    ];
    for field in positive {
        assert!(
            json.pointer(field).and_then(Value::as_f64).is_some_and(|v| v > 0.0),
            "{field}: {:?}",
            json.pointer(field)
        );
    }
    for load in ["unprotected", "idle", "dirty_100", "redis"] {
        let ppm = json.pointer(&format!("/clock_ppm/{load}")).and_then(Value::as_f64);
        assert!(ppm.is_some_and(|ppm| ppm != 0.0), "{load}: {ppm:?}");
    }
    for field in ["memory_mib", "pause_us", "total_ms", "file_mib"] {
        let value = json.pointer(&format!("/snapshot/0/{field}")).and_then(Value::as_u64);
        assert!(value.is_some_and(|value| value > 0), "{field}: {value:?}");
    }
    // Nothing of an idle guest has to wait.
    assert!(json.pointer("/snapshot/0/waited_us").is_some_and(Value::is_u64), "{}", json["snapshot"]);
    for field in ["/accel", "/qemu", "/machine/kernel"] {
        assert!(json.pointer(field).and_then(Value::as_str).is_some_and(|v| !v.is_empty()), "{field}");
    }
    assert_eq!(report.comparisons.len(), 12);
    assert!(report.comparisons.iter().all(|c| c.ratio.rounds.len() == report.plan.rounds as usize));
    assert_eq!(report.policies.len(), 6);
    assert_eq!(report.failovers.all.len() as u32, report.plan.kills + report.plan.freezes + report.plan.switchovers);
    // Not a figure but a promise.
    assert_eq!((report.failovers.client.lost, report.failovers.client.resets), (0, 0), "{:?}", report.failovers.client);
    for letter in ["b", "l", "n", "p"] {
        let lab = format!("{letter}{:x}", std::process::id());
        assert_eq!(fixture::traces(&lab), Vec::<String>::new(), "the labs are gone");
    }
}

/// With 0.25 and 8 GiB of guest memory. That a break costs what changed shows in what is sent, not in how long it takes.
#[test]
#[ignore = "takes a minute, and is a part of the run above"]
fn a_break_costs_no_more_with_a_large_guest() {
    let count = std::env::var("NINEFOLD_BREAKS").map_or(3, |n| n.parse().unwrap());
    let mut all = Vec::new();
    let mut taken_over = 0;
    for (letter, memory_mib) in [('s', 256), ('t', LARGE_MIB)] {
        let mut vm = VmOptions::new("bench".parse().unwrap());
        vm.memory_mib = memory_mib;
        let config = LabConfig::new(&format!("{letter}{:x}", std::process::id())).unwrap();
        let mut subject = Subject::up(&config, &vm).unwrap();
        for how in [Break::Cut300Ms, Break::BackupKeeperRestarted] {
            for _ in 0..count {
                let rebind = rebind::measure(&mut subject, how, memory_mib, &mut taken_over).unwrap();
                println!("{rebind:?}");
                all.push(rebind);
            }
        }
    }
    println!("{:#?}, and {taken_over} take-overs", RebindFigures::of(&all));
    let whole = |r: &&Rebind| !r.continued || r.bytes > 100 << 20;
    assert_eq!(all.iter().filter(whole).count(), 0, "{all:?}");
}

#[test]
#[ignore = "takes three minutes"]
fn a_quick_run_on_volumes_writes_a_complete_report() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = None;
    let options = Options { quick: true, qemu: None };
    let report = volume::run(&options, &mut |p| {
        println!("{:4} s of {} s: {}", p.done.as_secs(), p.total.as_secs(), p.what);
        last = Some(p.clone());
    })
    .unwrap();
    let last = last.unwrap();
    assert_eq!((last.done, last.left.is_zero()), (last.total, true), "progress ends at its end");
    let out = std::env::var_os("NINEFOLD_BENCH_OUT").map_or_else(|| dir.path().to_owned(), Into::into);
    for file in volume::write(&report, &out).unwrap() {
        assert!(std::fs::metadata(&file).unwrap().len() > 500, "{}", file.display());
    }
    let json: Value = serde_json::from_slice(&std::fs::read(out.join("volume.json")).unwrap()).unwrap();
    for field in ["pgbench", "fio_randwrite", "fio_seqwrite", "fio_fsync"] {
        assert!(json["ratios"][field].as_f64().is_some_and(|v| v > 0.0), "{field}: {}", json["ratios"]);
    }
    assert!(report.comparisons.iter().all(|c| c.ratio.rounds.len() == report.plan.rounds as usize));
    assert!(json["snapshot_pause_us"].as_f64().is_some_and(|v| v > 0.0), "{}", json["snapshots"]);
    let [whole, differs] = &report.snapshots[..] else { panic!("{:?}", report.snapshots) };
    assert!(differs.bytes.median < whole.bytes.median, "{:?}", report.snapshots);
    assert!(report.clones.thin_ms > 0.0 && report.clones.whole_ms > 0.0, "{:?}", report.clones);
    let resync = json["resync"].as_array().unwrap();
    let of = |field: &str| resync.iter().map(|r| r[field].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(of("changed_fraction"), [0.0, 0.01, 0.1, 0.5]);
    assert!(of("seconds").iter().all(|s| *s > 0.0));
    // What has changed is sent: all of it, and little else.
    let size = report.plan.resync_volume_bytes as f64;
    for (fraction, bytes) in of("changed_fraction").into_iter().zip(of("bytes")) {
        assert!(bytes >= (fraction * size * 0.99).floor(), "{bytes} bytes for {fraction}");
        assert!(bytes <= (fraction + 0.05) * size, "{bytes} bytes for {fraction}");
    }
    for letter in ["v", "w"] {
        let lab = format!("{letter}{:x}", std::process::id());
        assert_eq!(fixture::traces(&lab), Vec::<String>::new(), "the labs are gone");
    }
}

/// Whatever a guest writes, its snapshot holds each page once. All that the benchmark measures of it, alone.
#[test]
#[ignore = "takes three minutes, and is a part of the run above"]
fn a_snapshot_is_no_larger_than_the_memory() {
    for memory_mib in SNAPSHOT_SIZES {
        let mut vm = VmOptions { memory_mib, ..VmOptions::new("bench".parse().unwrap()) };
        vm.patience = std::time::Duration::from_secs(400);
        let config = LabConfig::new(&format!("n{:x}", std::process::id())).unwrap();
        for row in snapshots::measure(&config, &vm).unwrap() {
            println!("{}", serde_json::to_string(&row).unwrap());
            assert!(row.file_mib <= memory_mib + memory_mib / 20, "{row:?}");
        }
    }
}

/// A scan looks at what the guest writes, not at what it has. Everything else in a pause is noise to this test.
#[test]
#[ignore = "takes two minutes, and is a part of the run above"]
fn a_scan_costs_no_more_with_a_large_guest() {
    let mut rows = Vec::new();
    // Every size that the benchmark has, to measure them alone.
    let all = std::env::var_os("NINEFOLD_ALL_SIZES").is_some();
    let sizes: &[(u64, u16)] = if all { &SIZES } else { &[(256, 1), (4096, 1)] };
    for &(memory_mib, vcpus) in sizes {
        let mut vm = VmOptions { memory_mib, vcpus, ..VmOptions::new("bench".parse().unwrap()) };
        vm.patience = std::time::Duration::from_secs(400);
        let config = LabConfig::new(&format!("s{:x}", std::process::id())).unwrap();
        let row = scaling::measure(&config, &vm, std::time::Duration::from_secs(5)).unwrap();
        println!("{}", serde_json::to_string(&row).unwrap());
        assert!(row.checkpoints > 10, "{row:?}");
        rows.push(row);
    }
    // Sixteen times as much memory took ten times as long when all of it was looked at.
    let small = rows[0].scan_us_p50;
    assert!(rows.iter().all(|row| row.scan_us_p50 < 4 * small), "{rows:?}");
}

/// For docs/performance.md: for how long a guest stands still when its protection begins, and in the seconds after that, over its memory
/// and over how fast it writes to the half of it. With programs of a release build (NINEFOLD_BIN_DIR).
#[test]
#[ignore = "a measurement"]
fn the_beginning_of_protection() {
    for (letter, memory_mib) in ['u', 'v', 'w'].into_iter().zip(SNAPSHOT_SIZES) {
        let mut vm = VmOptions::new("bench".parse().unwrap());
        vm.memory_mib = memory_mib;
        let config = LabConfig::new(&format!("{letter}{:x}", std::process::id())).unwrap();
        let mut subject = Subject::up(&config, &vm).unwrap();
        subject.enter(Mode::Unprotected).unwrap();
        let written = memory_mib / 2;
        subject.workload.fill(written).unwrap();
        for rate in [None, Some(100), Some(0)] {
            let mut before = 0.0;
            if let Some(mbps) = rate {
                subject.workload.dirty_all(written, mbps).unwrap();
                before = subject.workload.dirty_rate(Duration::from_secs(1)).unwrap();
            }
            subject.new_checkpoints().unwrap();
            let begun = Instant::now();
            subject.enter(Mode::Adaptive).unwrap();
            let took = begun.elapsed();
            std::thread::sleep(Duration::from_secs(6));
            let all = subject.new_checkpoints().unwrap();
            let meanwhile =
                if rate.is_some() { subject.workload.dirty_rate(Duration::from_secs(2)).unwrap() } else { 0.0 };
            subject.workload.stop().unwrap();
            subject.enter(Mode::Unprotected).unwrap();
            println!("{memory_mib} MiB, {before:.0} MB/s before, {meanwhile:.0} after; protected in {took:.1?}");
            let mut others: Vec<u64> = all[1..].iter().map(|c| c.pause_us).collect();
            others.sort_unstable();
            println!(
                "    {} checkpoints followed: p50 {:?} us, most {:?} us",
                others.len(),
                others.get(others.len() / 2),
                others.last()
            );
            for c in all.iter().take(6) {
                println!(
                    "    pause {} us (stop {} save {} scan {} copy {} cont {}), {} pages: {} early, {} again, {} held; commit {} us",
                    c.pause_us,
                    c.stop_us,
                    c.save_us,
                    c.scan_us,
                    c.copy_us,
                    c.cont_us,
                    c.dirty_pages,
                    c.early_pages,
                    c.again_pages,
                    c.held_pages,
                    c.commit_us
                );
            }
        }
    }
}
