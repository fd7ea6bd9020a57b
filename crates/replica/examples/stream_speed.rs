//! How fast the checkpoint stream is on this machine: `cargo run --release -p ninefold-replica --example stream_speed`.
//!
//! For each kind of page and each mode: GB/s of guest memory encoded (into memory that is thrown away), decoded and
//! applied, and both over a Unix socket between two threads. The sizes are those of a busy checkpoint. Encoding and
//! decoding are counted in processor time of the thread, so that other work on the machine does not distort them; the
//! socket is counted by the clock.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::page::{PAGE_SIZE, Page};
use ninefold_replica::stream::{
    BlockInfo, CheckpointAssembler, Fed, Layout, Mode, PageEncoder, PageRun, PageSink, Pass, PassKind, PassWriter,
    RecordReader, StreamError,
};

/// Guest memory, bytes: more than the caches hold.
const RAM: usize = 256 << 20;
/// Dirty pages of one checkpoint, in runs of a few pages all over the memory.
const DIRTY: usize = 8192;
const RUN: usize = 8;
const EPOCHS: u64 = 24;
/// The first epochs are not counted: buffers grow, memory is touched for the first time.
const WARM_UP: u64 = 4;

struct Ram(Vec<u8>);

impl PageSink for Ram {
    fn write(&mut self, _: u16, first: u64, data: &[u8]) -> io::Result<()> {
        let at = first as usize * PAGE_SIZE;
        self.0[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, _: u16, page: u64, into: &mut Page) -> io::Result<()> {
        into.copy_from_slice(&self.0[page as usize * PAGE_SIZE..][..PAGE_SIZE]);
        Ok(())
    }
}

/// What a guest writes to its pages.
#[derive(Clone, Copy)]
enum Content {
    Zero,
    /// Random bytes.
    Noise,
    /// Objects of a database's heap: headers, pointers, short texts and free space.
    Heap,
}

/// xorshift64: fast, and the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn fill(page: &mut [u8], content: Content, random: &mut Random) {
    match content {
        Content::Zero => page.fill(0),
        Content::Noise => page.as_chunks_mut::<8>().0.iter_mut().for_each(|w| *w = random.next().to_le_bytes()),
        Content::Heap => {
            for (i, object) in page.chunks_mut(64).enumerate() {
                object.fill(0);
                object[..8].copy_from_slice(&(0x7f3a_5c00_0000 + (random.next() % 65536) * 64).to_le_bytes());
                object[8..16].copy_from_slice(&(0x10_0000_0000 + i as u64).to_le_bytes());
                object[16..28].copy_from_slice(format!("key:{:08}", random.next() % 100_000_000).as_bytes());
            }
        }
    }
}

/// A guest that writes: every page anew, or three words of each page.
struct Guest {
    ram: Vec<u8>,
    random: Random,
}

impl Guest {
    fn epoch(&mut self, epoch: u64, content: Content, whole: bool, runs: &mut Vec<PageRun>, staging: &mut Vec<u8>) {
        runs.clear();
        staging.clear();
        // The same pages again and again, as a working set is; spread over the memory.
        let stride = RAM / PAGE_SIZE / (DIRTY / RUN);
        for i in 0..DIRTY / RUN {
            let first = i * stride;
            for page in self.ram[first * PAGE_SIZE..(first + RUN) * PAGE_SIZE].chunks_mut(PAGE_SIZE) {
                if whole || epoch == 1 {
                    fill(page, content, &mut self.random);
                } else {
                    for _ in 0..3 {
                        let at = (self.random.next() as usize % 512) * 8;
                        page[at..at + 8].copy_from_slice(&self.random.next().to_le_bytes());
                    }
                }
            }
            runs.push(PageRun { block: 0, first: first as u64, count: RUN as u32 });
            staging.extend_from_slice(&self.ram[first * PAGE_SIZE..(first + RUN) * PAGE_SIZE]);
        }
    }
}

/// Processor time of this thread: the first field of `/proc/thread-self/schedstat`, nanoseconds (proc_pid_schedstat in
/// the kernel's `Documentation/scheduler/sched-stats.rst`).
fn processor_time() -> Result<Duration, StreamError> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").map_err(StreamError::Io)?;
    let first = text.split_whitespace().next().and_then(|n| n.parse().ok());
    first.map(Duration::from_nanos).ok_or_else(|| StreamError::Io(io::ErrorKind::InvalidData.into()))
}

fn gigabytes_a_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64().max(1e-9) / 1e9
}

fn layout() -> Result<Layout, StreamError> {
    Ok(Layout::new(vec![BlockInfo { name: "pc.ram".into(), used: RAM as u64, total: RAM as u64 }])?)
}

fn receive<R: io::Read>(
    reader: &mut RecordReader<R>,
    assembler: &mut CheckpointAssembler,
    ram: &mut Ram,
) -> Result<bool, StreamError> {
    while let Some(frame) = reader.next_record()? {
        if let Fed::Whole(_) = assembler.feed(&frame, ram)? {
            assembler.commit(ram)?;
            return Ok(true);
        }
    }
    Ok(false)
}

fn measure(name: &str, content: Content, whole: bool, mode: Mode) -> Result<(), StreamError> {
    let layout = layout()?;
    let (session, state) = (7, vec![5u8; 33_000]);
    let mut guest = Guest { ram: vec![1; RAM], random: Random(0x9e37_79b9_7f4a_7c15) };
    let mut encoder = PageEncoder::new(&layout);
    if mode.uses_shadow() {
        encoder = encoder.with_shadow(u64::MAX);
    }
    encoder.set_mode(mode);
    let (mut runs, mut staging, mut wire, mut scratch) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut ram = Ram(vec![1; RAM]);
    let mut assembler = CheckpointAssembler::new(session, Term(1), layout.clone(), 1);
    let (mut encode, mut decode, mut bytes, mut sent) = (Duration::ZERO, Duration::ZERO, 0, 0);
    for epoch in 1..=EPOCHS {
        guest.epoch(epoch, content, whole, &mut runs, &mut staging);
        wire.clear();
        let pass = Pass { session, kind: PassKind::Checkpoint, epoch: Epoch(epoch) };
        let mut writer = PassWriter::begin(&mut wire, &mut scratch, pass, Term(1))?;
        let begun = processor_time()?;
        let stats = writer.pages(&mut encoder, &runs, &staging)?;
        let encoded = processor_time()?.saturating_sub(begun);
        writer.device_state(&state)?;
        writer.end()?;
        let begun = processor_time()?;
        receive(&mut RecordReader::new(&wire[..]), &mut assembler, &mut ram)?;
        let decoded = processor_time()?.saturating_sub(begun);
        if epoch > WARM_UP {
            decode += decoded;
            encode += encoded;
            bytes += stats.bytes_in;
            sent += stats.bytes_out;
        }
    }
    assert!(
        staging
            .chunks(PAGE_SIZE * RUN)
            .zip(&runs)
            .all(|(data, run)| { ram.0[run.first as usize * PAGE_SIZE..].starts_with(data) })
    );

    // The same over a socket: what the keeper does, without TLS and without a network.
    let (near, far) = UnixStream::pair().map_err(StreamError::Io)?;
    let (mut near, near_back) = (near.try_clone().map_err(StreamError::Io)?, near);
    let receiver = std::thread::spawn(move || -> Result<(), StreamError> {
        let mut acks = far.try_clone().map_err(StreamError::Io)?;
        let mut reader = RecordReader::new(far);
        let mut assembler = CheckpointAssembler::new(session, Term(1), layout, 1);
        let mut ram = Ram(vec![1; RAM]);
        while receive(&mut reader, &mut assembler, &mut ram)? {
            acks.write_all(&[1]).map_err(StreamError::Io)?;
        }
        Ok(())
    });
    encoder.reset();
    let mut acks = near_back;
    let (mut socket, mut socket_bytes) = (Duration::ZERO, 0);
    for epoch in 1..=EPOCHS {
        guest.epoch(epoch, content, whole, &mut runs, &mut staging);
        let pass = Pass { session, kind: PassKind::Checkpoint, epoch: Epoch(epoch) };
        let begun = Instant::now();
        let mut writer = PassWriter::begin(&mut near, &mut scratch, pass, Term(1))?;
        writer.pages(&mut encoder, &runs, &staging)?;
        writer.device_state(&state)?;
        writer.end()?;
        io::Read::read_exact(&mut acks, &mut [0]).map_err(StreamError::Io)?;
        if epoch > WARM_UP {
            socket += begun.elapsed();
            socket_bytes += staging.len() as u64;
        }
    }
    near.shutdown(std::net::Shutdown::Both).map_err(StreamError::Io)?;
    receiver.join().map_err(|_| StreamError::Io(io::Error::other("the receiver panicked")))??;
    println!(
        "| {name} | {mode:?} | {:.3} | {:.2} | {:.2} | {:.2} |",
        sent as f64 / bytes as f64,
        gigabytes_a_second(bytes, encode),
        gigabytes_a_second(bytes, decode),
        gigabytes_a_second(socket_bytes, socket),
    );
    Ok(())
}

fn main() -> Result<(), StreamError> {
    println!("{DIRTY} pages a checkpoint, {} checkpoints. GB/s of guest memory.\n", EPOCHS - WARM_UP);
    println!("| pages | mode | sent/dirty | encode | decode and apply | both, over a socket |");
    println!("|---|---|---|---|---|---|");
    measure("zero", Content::Zero, true, Mode::Raw)?;
    measure("noise", Content::Noise, true, Mode::Raw)?;
    for mode in [Mode::Raw, Mode::Lz4] {
        measure("heap, written anew", Content::Heap, true, mode)?;
    }
    for mode in Mode::ALL {
        measure("heap, 3 words a page", Content::Heap, false, mode)?;
    }
    Ok(())
}
