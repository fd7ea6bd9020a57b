//! Half a minute of random faults: the part of `make chaos` that every change goes through. Real VMs; needs root and the guest.

mod fixture;
mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ninefold_lab::LabConfig;
use ninefold_lab::chaos::{self, ChaosOptions, ChaosStep, Subject};
use ninefold_testkit::programs;

#[test]
fn half_a_minute_of_chaos_finds_nothing() {
    programs::build(programs::OF_A_LAB);
    let name = support::lab_name();
    let options = ChaosOptions {
        lab: LabConfig::new(&name).unwrap(),
        seed: 1,
        seconds: 30,
        // Whatever is killed, it goes on: no loss of it is legitimate but that of its logs.
        subjects: vec![Subject::RedisNonVolatile],
        from_burst: 0,
        keep_going: false,
        keep: std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos"),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let report = chaos::run(&options, &mut |step| match step {
        ChaosStep::Planned { .. } => {}
        step => eprintln!("{step:?}"),
    })
    .unwrap();
    eprintln!("{report:#?}");
    assert_eq!(report.failures(), Vec::<String>::new());
    assert_eq!(fixture::traces(&name), Vec::<String>::new());
    assert!(!report.interrupted && report.bursts > 0 && report.faults.values().sum::<u64>() > report.bursts);
    assert!(report.acked_writes > 0 && report.acked_lost == 0);
}
