//! Bulk throughput over loopback, and what it costs in CPU: plain text against TLS; then one connection against several
//! that share the work.
//!
//! `cargo run --release -p ninefold-transport --example throughput [MiB]`

use std::error::Error;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use ninefold_model::HostName;
use ninefold_transport::{Authority, Cipher, Identity, Listener, Security, Validity, connect};
use rustix::time::{ClockId, clock_gettime};

const CHECKPOINT: usize = 8 << 20;
const TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let mib: usize = std::env::args().nth(1).map_or(Ok(2048), |n| n.parse())?;
    let dir = tempfile::tempdir()?;
    let authority = Authority::create(dir.path(), Validity::days(1))?;
    let (a, b): (HostName, HostName) = ("a".parse()?, "b".parse()?);
    for host in [&a, &b] {
        authority.issue(host, dir.path().join(host.as_str()), Validity::days(1))?;
    }
    let tls = |host: &HostName, cipher| {
        Identity::load_with_cipher(dir.path().join(host.as_str()), cipher).map(Security::MutualTls)
    };
    println!("{:<12} {:>8} {:>14} {:>14}", "", "MB/s", "CPU s/GB send", "CPU s/GB recv");
    for round in 0..3 {
        let plain = |host: &HostName| Security::PlainText { host: host.clone() };
        measure("plain", round, mib, plain(&a), plain(&b), &b)?;
        for (name, cipher) in [("aes-128-gcm", Cipher::Aes128Gcm), ("aes-256-gcm", Cipher::Aes256Gcm)] {
            measure(name, round, mib, tls(&a, cipher)?, tls(&b, cipher)?, &b)?;
        }
    }
    println!("\n{:<12} {:>8}   together", "connections", "MB/s");
    for round in 0..3 {
        for connections in [1, 2, 4] {
            let start = Instant::now();
            std::thread::scope(|scope| {
                let each: Vec<_> = (0..connections)
                    .map(|_| {
                        let (ours, theirs) = (tls(&a, Cipher::Aes128Gcm), tls(&b, Cipher::Aes128Gcm));
                        let b = &b;
                        scope.spawn(move || {
                            let done = transfer(mib / connections, ours.ok()?, theirs.ok()?, b);
                            done.map_err(|e| eprintln!("{e}")).ok()
                        })
                    })
                    .collect();
                if each.into_iter().map(|t| t.join()).any(|r| !matches!(r, Ok(Some(_)))) {
                    eprintln!("a connection failed");
                }
            });
            let bytes = (mib / connections * connections) << 20;
            println!("{connections:<12} {:>8.0}   round {round}", bytes as f64 / 1e6 / start.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

fn measure(
    name: &str,
    round: usize,
    mib: usize,
    sender: Security,
    receiver: Security,
    to: &HostName,
) -> Result<(), Box<dyn Error>> {
    let (seconds, send_cpu, receive_cpu) = transfer(mib, sender, receiver, to)?;
    let total = mib << 20;
    let gb = total as f64 / 1e9;
    println!(
        "{name:<12} {:>8.0} {:>14.3} {:>14.3}  round {round}",
        total as f64 / 1e6 / seconds,
        send_cpu / gb,
        receive_cpu / gb
    );
    Ok(())
}

/// Sends so much over a connection of its own; answers the seconds that it took, and of the CPU at both ends.
fn transfer(
    mib: usize,
    sender: Security,
    receiver: Security,
    to: &HostName,
) -> Result<(f64, f64, f64), Box<dyn Error>> {
    let listener = Listener::bind("127.0.0.1:0".parse()?, receiver)?;
    let addr = listener.local_addr();
    let total = mib << 20;
    let thread = std::thread::spawn(move || -> Result<f64, String> {
        let link = listener.accept().and_then(|i| i.handshake(TIMEOUT)).map_err(|e| e.to_string())?;
        let (mut reader, mut writer) = link.split();
        let mut checkpoint = vec![0; CHECKPOINT];
        let before = thread_cpu();
        let mut got = 0;
        while got < total {
            let n = CHECKPOINT.min(total - got);
            reader.read_exact(&mut checkpoint[..n]).map_err(|e| e.to_string())?;
            got += n;
        }
        let cpu = thread_cpu() - before;
        writer.write_all(b"k").map_err(|e| e.to_string())?;
        Ok(cpu)
    });
    let (mut reader, mut writer) = connect(addr, to, &sender, TIMEOUT)?.split();
    let checkpoint = vec![0x5a; CHECKPOINT];
    let (start, before) = (Instant::now(), thread_cpu());
    let mut sent = 0;
    while sent < total {
        let n = CHECKPOINT.min(total - sent);
        writer.write_all(&checkpoint[..n])?;
        sent += n;
    }
    let send_cpu = thread_cpu() - before;
    reader.read_exact(&mut [0])?;
    let seconds = start.elapsed().as_secs_f64();
    let receive_cpu = thread.join().map_err(|_| "the receiver panicked")??;
    Ok((seconds, send_cpu, receive_cpu))
}

/// CPU time of the calling thread, seconds, user and kernel.
fn thread_cpu() -> f64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}
