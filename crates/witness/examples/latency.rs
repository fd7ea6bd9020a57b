//! How long a compare-and-swap takes over loopback on a warm connection, and what of it is the disk.
//!
//! `cargo run --release -p ninefold-witness --example latency [DIR]`: data in DIR (default: a temporary directory).

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_model::{HostName, Label, Record, VmId};
use ninefold_transport::{Authority, Identity, Listener, Security, Validity};
use ninefold_witness::{Limits, Registers, Server};
use ninefold_witness_client::{Swap, Timeouts, Witness, WitnessClient};

const SWAPS: usize = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| std::env::temp_dir().display().to_string());
    let dir = tempfile::tempdir_in(parent)?;
    let (a, w): (HostName, HostName) = ("a".parse()?, "w".parse()?);
    let authority = Authority::create(dir.path(), Validity::days(1))?;
    let mut tls = Vec::new();
    for host in [&a, &w] {
        let identity = dir.path().join(host.as_str());
        authority.issue(host, &identity, Validity::days(1))?;
        tls.push(Security::MutualTls(Identity::load(identity)?));
    }
    println!("{:<34} {:>9} {:>9} {:>9}", "microseconds", "p50", "p99", "max");
    fsync(dir.path())?;

    let plain = |host: &HostName| Security::PlainText { host: host.clone() };
    for (name, client, server) in [("TLS", tls[0].clone(), tls[1].clone()), ("plain text", plain(&a), plain(&w))] {
        let registers = Registers::open(dir.path().join(name))?;
        let server = Server::new(Listener::bind("127.0.0.1:0".parse()?, server)?, registers, Limits::default());
        let (addr, stop) = (server.local_addr(), server.handle());
        let thread = std::thread::spawn(move || server.run());
        let new_client = || WitnessClient::new(addr, w.clone(), client.clone(), Timeouts::default());
        let mut warm = new_client();
        swaps(&format!("swap, warm, {name}"), &mut warm, &a)?;
        let vm = VmId::random(0);
        report(&format!("read, warm, {name}"), sample(SWAPS, || Ok(warm.read(vm).map(drop)?))?);
        report(&format!("read, new connection, {name}"), sample(200, || Ok(new_client().read(vm).map(drop)?))?);
        stop.stop();
        thread.join().map_err(|_| "the server panicked")??;
    }

    // Many VMs at once: proposals that wait together share an fsync.
    let registers = Arc::new(Registers::open(dir.path().join("many"))?);
    let start = Instant::now();
    let threads: Vec<_> = (0..100)
        .map(|i| {
            let (registers, a) = (registers.clone(), a.clone());
            std::thread::spawn(move || {
                let name = "many".parse().map_err(|e: ninefold_model::InvalidName| e.to_string())?;
                let label = Label { name, number: 0 };
                let boot = Record::boot(a.clone());
                registers.compare_and_swap(a, VmId::random(i), label, None, boot).map_err(|e| e.to_string())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a caller panicked")??;
    }
    println!("100 VMs at once, without network: {} us in all", start.elapsed().as_micros());
    Ok(())
}

fn swaps(name: &str, client: &mut WitnessClient, host: &HostName) -> Result<(), Box<dyn Error>> {
    let (vm, label) = (VmId::random(0), Label { name: "db".parse()?, number: 0 });
    let mut last: Option<Record> = None;
    let samples = sample(SWAPS, || {
        let new = last.as_ref().map_or_else(|| Record::boot(host.clone()), |r| r.alone(host.clone()));
        match client.compare_and_swap(vm, &label, last.as_ref(), &new)? {
            Swap::Won(record) => last = Some(record),
            Swap::Lost(found) => return Err(format!("lost to {found:?}").into()),
        }
        Ok(())
    })?;
    report(name, samples);
    Ok(())
}

/// What the disk alone takes: 4 KiB rewritten and synced.
fn fsync(dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut file = std::fs::File::create(dir.join("probe"))?;
    file.write_all(&[0; 1 << 20])?;
    file.sync_all()?;
    let samples = sample(SWAPS, || {
        std::io::Seek::rewind(&mut file)?;
        file.write_all(&[1; 4096])?;
        Ok(file.sync_data()?)
    })?;
    report("write 4 KiB and fdatasync", samples);
    Ok(())
}

fn sample(count: usize, mut once: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<Vec<Duration>, Box<dyn Error>> {
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        once()?;
        samples.push(start.elapsed());
    }
    samples.sort_unstable();
    Ok(samples)
}

fn report(name: &str, samples: Vec<Duration>) {
    let at = |share: usize| samples[(samples.len() - 1) * share / 100].as_micros();
    println!("{name:<34} {:>9} {:>9} {:>9}", at(50), at(99), at(100));
}
