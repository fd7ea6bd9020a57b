//! A host that stands still for a while is not dead: what a stall of the primary or of the backup costs.
//! Run with `--test-threads=1`.

mod support;

use std::time::Duration;

use ninefold_model::event::EventKind;
use support::{Beginning, Scenario};

/// Long enough that the primary must doubt (twice the heartbeat less than the timeout), short enough that its backup, which
/// counts from the last heartbeat, still waits: with half a second to spare on either side, for machines that are busy.
const TIMEOUT_MS: u32 = 3000;
const HEARTBEAT_MS: u32 = 600;
const STALL: Duration = Duration::from_millis(1900);

fn begin() -> Beginning {
    let mut begin = Beginning::default();
    begin.vm.timing.failure_timeout_ms = TIMEOUT_MS;
    begin.vm.timing.heartbeat_ms = HEARTBEAT_MS;
    begin
}

fn stand_still(s: &Scenario, host: &str, time: Duration) {
    s.lab.freeze(host).unwrap();
    // The stall itself.
    std::thread::sleep(time);
    s.lab.thaw(host).unwrap();
}

fn costs(kind: &EventKind) -> bool {
    use EventKind::{BackupLost, Lost, PrimaryLost, StoodDown, TookOver, Unprotected};
    matches!(
        kind,
        BackupLost { .. } | Lost { .. } | PrimaryLost { .. } | StoodDown { .. } | TookOver { .. } | Unprotected { .. }
    )
}

fn stood_still(kind: &EventKind) -> bool {
    matches!(kind, EventKind::StoodStill { .. })
}

/// It asks the witness, and goes on with the backup that it has: nothing is copied anew.
fn the_primary_goes_on(s: &Scenario) {
    let mark = s.events.mark();
    stand_still(s, &s.primary, STALL);
    s.expect(mark, &s.primary, "stall", stood_still);
    s.expect_writes(50);
    let since = &s.events.all()[mark..];
    assert!(!since.iter().any(|e| costs(&e.kind)), "the stall has cost something: {since:?}");
}

#[test]
fn a_primary_that_stood_still_goes_on_with_its_backup() {
    let s = Scenario::with("stall", begin());
    let term = |s: &Scenario| s.lab.keeper(&s.primary).unwrap().status().unwrap().term;
    let before = term(&s);
    the_primary_goes_on(&s);
    assert!(term(&s) > before, "the witness was not asked");
    // What the backup answers is as good as the witness's word.
    let mark = s.events.mark();
    s.lab.kill_witness().unwrap();
    s.expect(mark, &s.primary, "witness unreachable", |k| matches!(k, EventKind::WitnessUnreachable { .. }));
    the_primary_goes_on(&s);
    s.lab.start_witness().unwrap();
    s.finish();
}

/// What becomes of stalls of each length with the default timing, for docs/protocol.md. On a machine that does nothing else.
#[test]
#[ignore = "a measurement"]
fn how_stalls_of_each_length_end() {
    let mut begin = Beginning::default();
    begin.vm.timing = Default::default();
    let mut s = Scenario::with("stalls", begin);
    for who in ["primary", "backup"] {
        for ms in [10, 100, 180, 240, 300, 1000, 3000] {
            for _ in 0..support::rounds(5) {
                let host = if who == "primary" { s.primary.clone() } else { s.backup.clone() };
                let mark = s.events.mark();
                stand_still(&s, &host, Duration::from_millis(ms));
                s.expect_writes(100);
                let since = s.events.all()[mark..].to_vec();
                let seen = |wanted: fn(&EventKind) -> bool| since.iter().any(|e| wanted(&e.kind));
                let end = if seen(|k| matches!(k, EventKind::TookOver { .. })) {
                    s.thawed += 1;
                    s.swap_roles();
                    "taken over"
                } else if seen(|k| matches!(k, EventKind::Unprotected { .. })) {
                    "backup given up"
                } else if seen(stood_still) {
                    "stood still, goes on"
                } else {
                    "nothing"
                };
                eprintln!("{who} {ms} ms: {end}");
                match end {
                    "taken over" | "backup given up" => drop(s.settle(mark)),
                    _ => s.check_rest(),
                }
            }
        }
    }
    s.finish();
}
