//! Which clock is read. A test cannot suspend its host, but a time namespace (`time_namespaces(7)`) can set the clocks apart as a
//! suspended host does. Needs root and unshare(1).

use std::process::Command;
use std::time::{Duration, Instant};

use ninefold_transport::clock::{Moment, monotonic_us};

/// How far CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC in the namespace.
const SUSPENDED: Duration = Duration::from_secs(30 * 24 * 3600);

#[test]
fn a_moment_counts_the_time_in_which_the_host_was_suspended() {
    let me = std::env::current_exe().unwrap();
    let mut child = Command::new("unshare");
    child.args(["--time", "--fork", "--boottime"]).arg(SUSPENDED.as_secs().to_string());
    let before = Moment::now();
    let out = child.arg(me).args(["--ignored", "--exact", "in_the_namespace", "--nocapture"]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    let said = text.lines().find_map(|line| line.strip_prefix("moment ")).expect("no moment").parse().unwrap();
    let seen = Moment::from_micros(said);
    // What was a moment ago by CLOCK_MONOTONIC is as long ago as the host was suspended.
    assert!(said - before.as_micros() >= SUSPENDED.as_micros() as u64, "{seen:?} after {before:?}");
    assert_eq!(seen.elapsed(), Duration::ZERO, "it is still to come here");
}

#[test]
#[ignore = "runs in the namespace of the other test"]
fn in_the_namespace() {
    let began = Instant::now();
    println!("moment {}", Moment::now().as_micros());
    // The clock of events stays with that of every other process.
    assert!(began.elapsed() < SUSPENDED && monotonic_us() > 0);
}
