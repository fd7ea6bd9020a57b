//! What it costs to have an epoch on the disk before it is acknowledged: through the write log, and without one, when the
//! guest's own flushes have to be kept between its writes.
//!
//!     cargo run --release -p ninefold-volume --example write_log_speed -- DIRECTORY

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_volume::nbd::Handler;
use ninefold_volume::{Format, Pool, ServedVolume, Tools};

const EPOCHS: u64 = 300;
const BLOCK: u64 = 4096;
const SIZE: u64 = 256 << 20;
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).ok_or("which directory?")?;
    let directory = tempfile::tempdir_in(directory)?;
    println!(
        "| writes and flushes in an epoch | with the log, p50 | p99 | each flush kept, p50 | p99 |\n|---|---|---|---|---|"
    );
    for writes in [1, 10, 40, 160] {
        let log = with_log(directory.path(), writes)?;
        let barriers = with_barriers(directory.path(), writes)?;
        println!("| {writes} | {} | {} | {} | {} |", log.0, log.1, barriers.0, barriers.1);
    }
    Ok(())
}

/// Somewhere in the volume, elsewhere each time.
fn place(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SIZE / BLOCK) * BLOCK
}

fn with_log(directory: &Path, writes: u64) -> Result<(String, String), Box<dyn std::error::Error>> {
    let pool = Pool::open(&directory.join("pool"), Tools::default())?;
    let name = format!("disk-{writes}").parse()?;
    pool.create(&name, SIZE, Format::Raw)?;
    let (image, log) = pool.open_logged(&name)?;
    let served = ServedVolume::new(image, log, Acknowledge::Disk)?;
    served.hold();
    let mut times = Vec::new();
    for epoch in 1..=EPOCHS {
        for n in 0..writes {
            Handler::write(&served, place(epoch * writes + n), vec![epoch as u8; BLOCK as usize], false)?;
            Handler::flush(&served)?;
        }
        served.seal(Epoch(epoch));
        let began = Instant::now();
        served.commit(Epoch(epoch));
        served.wait_durable(Epoch(epoch), LIMIT)?;
        times.push(began.elapsed());
    }
    Ok(percentiles(times))
}

fn with_barriers(directory: &Path, writes: u64) -> Result<(String, String), Box<dyn std::error::Error>> {
    let file = File::create(directory.join("plain"))?;
    file.set_len(SIZE)?;
    let mut times = Vec::new();
    for epoch in 1..=EPOCHS {
        let began = Instant::now();
        for n in 0..writes {
            file.write_all_at(&vec![epoch as u8; BLOCK as usize], place(epoch * writes + n))?;
            file.sync_data()?;
        }
        times.push(began.elapsed());
    }
    Ok(percentiles(times))
}

fn percentiles(mut times: Vec<Duration>) -> (String, String) {
    times.sort();
    let at = |part: usize| format!("{:.2} ms", times[times.len() * part / 100].as_secs_f64() * 1000.0);
    (at(50), at(99))
}
