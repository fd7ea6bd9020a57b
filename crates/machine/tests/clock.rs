//! The guest's clocks: they do not notice checkpoints, and after a take-over they are given what has passed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::Shadow;
use guest::timed::{self, Watch, host_seconds, host_tsc};
use ninefold_machine::{Machine, MachineConfig};
use ninefold_model::spec::{Accel, ClockGap};
use ninefold_testkit::guest;

/// Parts per million. In two seconds, 5,000 are 10 ms: a guest that other programs keep from running may look like that. Without
/// anything done for them, clocks lose some 300,000 here.
const BOUND: f64 = 5000.0;

fn on(qemus: &[PathBuf], check: impl Fn(&Path, Accel, &MachineConfig)) {
    let dir = tempfile::tempdir().unwrap();
    for qemu in qemus {
        for accel in guest::accels() {
            let image = timed::boot_sector(dir.path(), accel);
            check(qemu, accel, &guest::config(qemu, accel, 1, &image));
        }
    }
}

fn pause(machine: &mut Machine) -> Duration {
    let began = Instant::now();
    machine.begin_pause().unwrap();
    machine.finish_save().unwrap();
    machine.resume().unwrap();
    began.elapsed()
}

/// Ticks of the host's TSC in a second, from the whole run.
struct Tsc(f64, u64);

impl Tsc {
    fn begin() -> Tsc {
        Tsc(host_seconds(), host_tsc())
    }

    fn hz(&self) -> f64 {
        (host_tsc() - self.1) as f64 / (host_seconds() - self.0)
    }
}

#[test]
fn checkpoints_take_no_time() {
    on(&guest::qemus(), |qemu, accel, config| {
        let what = format!("{} {accel}", qemu.display());
        let (mut machine, _ports) = guest::launch(config);
        let memory = machine.memory().clone();
        let tsc = Tsc::begin();
        machine.start().unwrap();
        assert!(machine.keeps_time(), "{what}");
        timed::await_samples(&memory, 1000);
        // The first pause tells what the guest's time is.
        pause(&mut machine);
        let mut watch = Watch::new(&memory);
        let hz = tsc.hz();
        watch.times(hz);
        let (began, mut stood, mut pauses) = (Instant::now(), Duration::ZERO, 0);
        while began.elapsed() < Duration::from_secs(2) {
            stood += pause(&mut machine);
            pauses += 1;
            watch.look();
        }
        let times = watch.times(hz);
        let ppm = times.ppm();
        let lost = stood.as_secs_f64() / times.host * 1e6;
        eprintln!("{what}: {pauses} pauses, {lost:.0} ppm of the time; {times:?}; ppm {ppm:.1?}");
        assert!(lost > 20.0 * BOUND, "{what}: too few pauses to show anything");
        let [of_tsc, of_pm, _, of_kvmclock] = ppm;
        // KVM's TSC is the processor's own, at the frequency that it tells the guest.
        assert!(of_tsc.abs() < BOUND && of_pm.abs() < BOUND, "{what}: {ppm:.0?} ppm");
        assert!(accel == Accel::Tcg || of_kvmclock.abs() < BOUND, "{what}: {ppm:.0?} ppm");
        // A timer that falls due in a pause fires once, afterwards: none is lost, as long as QEMU itself is not kept from running
        // for a whole interval.
        let missing = times.host - times.ticks;
        assert!(
            missing < stood.as_secs_f64() / 2.0 && missing > -2.0 / 18.2,
            "{what}: {times:?}, stood still {stood:?}"
        );
    });
}

/// A guest that is stopped for a checkpoint, and a standby that has it.
fn taken_over(config: &MachineConfig, look: &mut dyn FnMut(&Machine)) -> (Machine, Instant) {
    let (mut machine, _ports) = guest::launch(config);
    let memory = machine.memory().clone();
    machine.start().unwrap();
    timed::await_samples(&memory, 1000);
    for _ in 0..5 {
        pause(&mut machine);
        look(&machine);
    }
    machine.begin_pause().unwrap();
    let stopped = Instant::now();
    let (mut state, mut shadow) = (Vec::new(), Shadow::empty(&memory));
    shadow.take_all(&memory);
    machine.finish_save().unwrap();
    machine.state_into(&mut state).unwrap();
    machine.kill();
    let (mut standby, ports) = guest::launch(&guest::standby(config));
    // They carry nothing; QEMU must not find them closed.
    std::mem::forget(ports);
    shadow.give(standby.memory());
    standby.load(&state).unwrap();
    (standby, stopped)
}

#[test]
fn a_gap_is_given_back() {
    on(&guest::qemus()[..1], |qemu, accel, config| {
        let what = format!("{} {accel}", qemu.display());
        let tsc = Tsc::begin();
        let mut watch = None;
        let (mut standby, stopped) = taken_over(config, &mut |machine| {
            watch.get_or_insert_with(|| Watch::new(machine.memory())).times(tsc.hz());
        });
        let mut watch = watch.unwrap();
        watch.moved(&standby.memory().clone());
        let gap = stopped.elapsed();
        standby.start_after(gap, ClockGap::AtOnce).unwrap();
        assert!(standby.keeps_time(), "{what}");
        // Also a pause that follows takes the gap for given.
        pause(&mut standby);
        let times = watch.times(tsc.hz());
        eprintln!("{what}: {gap:?} between; {times:?}");
        // What KVM's guests take their time from is kvmclock: their TSC is the processor's own.
        let most = gap.as_secs_f64() / 5.0;
        let off = |guest: f64| (guest - times.host).abs();
        assert!(off(times.pm) < most, "{what}: {times:?}");
        assert!(off(if accel == Accel::Tcg { times.tsc } else { times.kvmclock }) < most, "{what}: {times:?}");
    });
}

#[test]
fn a_gap_that_is_not_given_back_leaves_time_where_it_was() {
    on(&guest::qemus()[..1], |qemu, accel, config| {
        let what = format!("{} {accel}", qemu.display());
        let mut last = None;
        let tsc = Tsc::begin();
        let (mut standby, stopped) = taken_over(config, &mut |machine| {
            last = Some(timed::await_samples(machine.memory(), 0));
        });
        let gap = stopped.elapsed();
        let started = Instant::now();
        standby.start().unwrap();
        pause(&mut standby);
        let (before, now) = (last.unwrap(), timed::await_samples(standby.memory(), 0));
        let passed = now.tsc.checked_sub(before.tsc).unwrap_or_else(|| panic!("{what}: {before:?}, {now:?}"));
        assert!(now.kvmclock >= before.kvmclock, "{what}: {before:?}, {now:?}");
        let passed =
            if accel == Accel::Tcg { passed as f64 / tsc.hz() } else { (now.kvmclock - before.kvmclock) as f64 / 1e9 };
        let most = started.elapsed().as_secs_f64() + gap.as_secs_f64() / 2.0;
        assert!(passed < most, "{what}: {passed} s have passed, {gap:?} between");
    });
}
