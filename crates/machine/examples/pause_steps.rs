//! Measures the steps of a pause: `pause_steps QEMU ACCEL VCPUS MEMORY_MIB POPULATED_MIB PAGES ROUNDS EPOCH_MS [QEMU ARGUMENTS...]`.
//!
//! The guest is the test guest (`NINEFOLD_CACHE`, see guest/README.md). It fills POPULATED_MIB of its memory once; PAGES are
//! dirtied in each epoch by a shell loop in it when not 0. Prints medians and 99th percentiles in microseconds, and what it
//! took to begin and to end the tracking.

use std::error::Error;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_machine::{DirtySet, Machine, MachineConfig, Ram, StepTimes};
use ninefold_model::spec::{Accel, AccelChoice, Arch, Boot, Hardware, Nic, Policy, VmSpec};

/// One checkpoint: QEMU's steps, scan and copy in microseconds, pages.
type Row = (StepTimes, u64, u64, u64);

/// Reads the console until `text` comes.
fn await_text(console: &mut UnixStream, text: &str) -> Result<(), Box<dyn Error>> {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(text) {
        let count = console.read(&mut buffer)?;
        if count == 0 {
            return Err("the console was closed".into());
        }
        seen.extend_from_slice(&buffer[..count]);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().ok_or(format!("{what} is missing"));
    let qemu = PathBuf::from(next("QEMU")?);
    let accel = if next("ACCEL")? == "kvm" { Accel::Kvm } else { Accel::Tcg };
    let vcpus: u16 = next("VCPUS")?.parse()?;
    let memory_mib: u64 = next("MEMORY_MIB")?.parse()?;
    let populated_mib: u64 = next("POPULATED_MIB")?.parse()?;
    let pages: u64 = next("PAGES")?.parse()?;
    let rounds: usize = next("ROUNDS")?.parse()?;
    let epoch = Duration::from_millis(next("EPOCH_MS")?.parse()?);
    let cache = std::env::var_os("NINEFOLD_CACHE").map_or_else(|| "/var/cache/ninefold".into(), PathBuf::from);
    let guest = cache.join("guest/current");
    let boot = Boot::Linux {
        kernel: guest.join("vmlinuz"),
        initrd: Some(guest.join("initrd.img")),
        cmdline: std::fs::read_to_string(guest.join("cmdline"))?.trim().to_owned(),
    };
    let config = MachineConfig {
        qemu,
        spec: VmSpec {
            id: ninefold_model::VmId::random(1),
            name: "measure".parse()?,
            hardware: Hardware {
                arch: Arch::X86_64,
                vcpus,
                memory_mib,
                accel: AccelChoice::Auto,
                boot: boot.kind(),
                nics: vec![Nic { mac: "52:54:00:00:00:01".parse()? }],
                volumes: Vec::new(),
                watchdog: None,
                uuid: None,
            },
            policy: Policy::default(),
        },
        boot,
        accel,
        incoming: false,
        generation: ninefold_model::Uuid::random(1),
        volumes: Vec::new(),
        extra_args: args.map(Into::into).collect(),
    };
    let (mut machine, ports) = Machine::launch(&config, Arc::new(Ram::create(memory_mib << 20)?))?;
    let console: OwnedFd = ports.console;
    let mut console = UnixStream::from(console);
    console.set_nonblocking(false)?;
    machine.start()?;
    await_text(&mut console, "ninefold-guest: ready")?;
    if populated_mib > 0 {
        writeln!(
            console,
            "mkdir /run/full; mount -t tmpfs -o size={populated_mib}m none /run/full; \
             dd if=/dev/zero of=/run/full/x bs=1M count={populated_mib} 2>/dev/null; echo fil\\led"
        )?;
        await_text(&mut console, "filled")?;
    }
    if pages > 0 {
        // A buffer of that many pages is overwritten again and again.
        let count = pages * 4096;
        writeln!(
            console,
            "while :; do dd if=/dev/zero of=/dev/shm/x bs={count} count=1 conv=notrunc 2>/dev/null; done &"
        )?;
    }
    let began = Instant::now();
    let mut tracker = machine.track()?;
    let started = began.elapsed();
    let memory = machine.memory().clone();
    let mut dirty = DirtySet::for_layout(memory.layout());
    let mut copied = vec![0; 256 << 20];
    let mut state = Vec::with_capacity(1 << 20);
    let mut rows: Vec<Row> = Vec::with_capacity(rounds);
    for round in 0..rounds + 20 {
        std::thread::sleep(epoch);
        dirty.clear();
        machine.begin_pause()?;
        let scan = Instant::now();
        tracker.scan_stopped(&mut dirty)?;
        let scan = scan.elapsed();
        let copy = Instant::now();
        memory.read_runs(dirty.runs(), &mut copied)?;
        let copy = copy.elapsed();
        machine.finish_save()?;
        machine.resume()?;
        machine.state_into(&mut state)?;
        if round >= 20 {
            rows.push((machine.times(), scan.as_micros() as u64, copy.as_micros() as u64, dirty.pages()));
        }
    }
    let summary = |name: &str, value: &dyn Fn(&Row) -> u64| {
        let mut all: Vec<u64> = rows.iter().map(value).collect();
        all.sort_unstable();
        format!("{name} {}/{}/{}", all[all.len() / 2], all[all.len() * 99 / 100], all[all.len() - 1])
    };
    let hot = tracker.regions().map_or_else(String::new, |(all, hot)| format!(", {hot} of {all} regions scanned"));
    println!(
        "{} {} {} {} {} {} {} state {}{hot} (p50/p99/max)",
        summary("pause", &|r| r.0.pause_us),
        summary("stop", &|r| r.0.stop_us),
        summary("save", &|r| r.0.save_us),
        summary("scan", &|r| r.1),
        summary("copy", &|r| r.2),
        summary("cont", &|r| r.0.cont_us),
        summary("pages", &|r| r.3),
        state.len()
    );
    let began = Instant::now();
    drop(tracker);
    println!("tracking began in {} us and ended in {} us", started.as_micros(), began.elapsed().as_micros());
    machine.quit();
    Ok(())
}
