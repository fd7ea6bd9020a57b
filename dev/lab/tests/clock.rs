//! The guest's clock: checkpoints, switchovers and take-overs take no time from it. Run with `--test-threads=1`.

mod fixture;
#[path = "fixture/shell.rs"]
mod shell;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ninefold_control::Request;
use ninefold_keeper::config::KeeperConfig;
use ninefold_lab::bench::clock::{self, Span};
use ninefold_lab::bench::plan::ClockLoad;
use ninefold_lab::bench::plan::Mode;
use ninefold_lab::bench::subject::Subject;
use ninefold_lab::guest_clock::{GuestClock, Offset};
use ninefold_lab::{LabConfig, VmOptions};
use ninefold_model::event::EventKind;
use ninefold_model::spec::ClockGap;

const PATIENCE: Duration = Duration::from_secs(60);

fn subject(vcpus: u16, clock_gap: ClockGap) -> Subject {
    let options = VmOptions { vcpus, clock_gap, ..VmOptions::new("clock".parse().unwrap()) };
    Subject::up(&LabConfig::new(&fixture::name("clock")).unwrap(), &options).unwrap()
}

/// The VM goes to the other host.
fn moves(s: &mut Subject, how: impl FnOnce(&Subject)) {
    let to = s.other();
    let mark = s.vm.events.mark();
    how(s);
    let deadline = Instant::now() + PATIENCE;
    let took =
        s.vm.events.wait_for(mark, deadline, |e| matches!(e.kind, EventKind::TookOver { .. }) && e.host.as_str() == to);
    assert!(took.is_some(), "{to} does not take over");
    s.moved_to(&to);
}

#[test]
fn a_protected_guests_clock_keeps_time_wherever_it_runs() {
    let mut s = subject(4, ClockGap::AtOnce);
    s.enter(Mode::Fixed(10)).unwrap();
    let mut clock = GuestClock::connect(&s.lab).unwrap();
    s.new_checkpoints().unwrap();
    let before = clock.offset(Duration::from_secs(1)).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let after = clock.offset(Duration::from_secs(1)).unwrap();
    let (ppm, us) = (after.ppm_since(&before), (after.at_us - before.at_us) as f64);
    let stood: u64 = s.new_checkpoints().unwrap().iter().map(|c| c.pause_us).sum();
    let lost = stood as f64 / us * 1e6;
    eprintln!("{ppm:.0} ppm; it stood still for {lost:.0} ppm of the time");
    // A busy machine keeps questions waiting.
    assert!(lost > 20_000.0 && ppm.abs() < lost / 10.0, "{ppm} ppm; it stood still for {lost} ppm of the time");

    // What it shows after a move is what it would have shown without.
    let apart = |now: &Offset, then: &Offset| (now.guest_ahead_us - then.guest_ahead_us) as f64 / 1e3;
    moves(&mut s, |s| s.lab.ask(&s.primary, &Request::Switchover).unwrap());
    let switched = clock.offset(Duration::from_secs(1)).unwrap();
    eprintln!("after a switchover: {} ms", apart(&switched, &after));
    assert!(apart(&switched, &after).abs() < 100.0, "{} ms", apart(&switched, &after));

    s.enter(Mode::Adaptive).unwrap();
    let before = clock.offset(Duration::from_secs(1)).unwrap();
    let frozen = s.primary.clone();
    moves(&mut s, |s| s.lab.freeze(&s.primary).unwrap());
    let taken = clock.offset(Duration::from_secs(1)).unwrap();
    eprintln!("after a take-over: {} ms", apart(&taken, &before));
    // It was found dead after 250 ms.
    assert!(apart(&taken, &before).abs() < 100.0, "{} ms", apart(&taken, &before));
    assert_eq!(clock.steps_back, 0);
    s.lab.thaw(&frozen).unwrap();
}

/// As exact as a drift is measured, ppm, but for no longer than `LONGEST` for each load.
const EXACT: f64 = 20.0;
const LONGEST: Duration = Duration::from_secs(400);

/// For docs/guides/guests.md, on a machine that does nothing else:
///
/// ```text
/// cargo test -p ninefold-lab --release --test clock -- --ignored --nocapture --test-threads=1 how_well
/// ```
///
/// It takes some minutes: each load is measured until the error is small, which takes long where the guest has one busy processor and
/// answers late. NINEFOLD_CLOCK_SECONDS is the least time for each load (12 if it is not set) and, if it is set, the longest, too.
#[test]
#[ignore = "a measurement"]
fn how_well_a_guests_clock_keeps_time() {
    let seconds = std::env::var("NINEFOLD_CLOCK_SECONDS").ok().map(|text| text.parse().unwrap());
    let least = Duration::from_secs(seconds.unwrap_or(12));
    let span = Span { least, error_ppm: EXACT, most: if seconds.is_some() { least } else { LONGEST } };
    for vcpus in [1, 4] {
        let mut s = subject(vcpus, ClockGap::AtOnce);
        let source = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
        let in_the_guest = |s: &Subject, command| shell::ask(&console(s), command);
        let first = in_the_guest(&s, source);
        for load in ClockLoad::ALL {
            let drift = clock::measure(&mut s, load, span, 30_000.0).unwrap();
            println!("{vcpus} vCPUs, {load}: {drift}; clocksource {}", in_the_guest(&s, source));
        }
        // Linux compares its clocks all the time, and says so when one of them is off.
        let doubts = in_the_guest(&s, "dmesg | grep -iE 'clocksource.*(unstable|skew)|marking clocksource'");
        assert_eq!((doubts.as_str(), in_the_guest(&s, source)), ("", first), "{vcpus} vCPUs");
    }
}

fn console(s: &Subject) -> PathBuf {
    KeeperConfig::console_socket(&s.lab.vm_dir(&s.primary).unwrap())
}
