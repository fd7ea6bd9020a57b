//! A guest of one boot sector that writes down, again and again, what its clocks show: TSC, PM timer, the firmware's count of
//! PIT interrupts and, under KVM, kvmclock.
#![allow(dead_code, reason = "each test file uses a part")]

use std::arch::global_asm;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_machine::{Memory, PAGE_SIZE, PageRun};
use ninefold_model::spec::Accel;

global_asm!(
    r#"
    .section .rodata.nf_timed, "a"
    .globl nf_timed
    .globl nf_timed_end
    .code16
nf_timed:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7000, %sp
    cmpb $1, 0x7dfd
    jne 1f
    movl $0x4b564d01, %ecx
    movl $0x8101, %eax
    xorl %edx, %edx
    wrmsr
1:  sti
    xorl %ebx, %ebx
2:  incl %ebx
    movl %ebx, 0x8028
    rdtsc
    movl %eax, 0x8008
    movl %edx, 0x800c
    movw $0x608, %dx
    inl %dx, %eax
    movl %eax, 0x8010
    movl 0x46c, %eax
    movl %eax, 0x8014
    movl %ebx, 0x8000
    movw $3000, %cx
3:  loop 3b
    jmp 2b
nf_timed_end:
    .code64
    .text
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static nf_timed: u8;
    static nf_timed_end: u8;
}

/// Frequency of the PM timer (ACPI specification, 4.8.3.3), of the PIT's interrupts as the firmware sets it up, Hz.
const PM_HZ: f64 = 3_579_545.0;
const PIT_HZ: f64 = 1_193_182.0 / 65536.0;

/// Writes the boot sector to a file.
pub fn boot_sector(dir: &Path, accel: Accel) -> PathBuf {
    let (start, end) = (&raw const nf_timed, &raw const nf_timed_end);
    // SAFETY: both symbols are in the section above, in this order.
    let code = unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) };
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(code);
    sector[0x1fd] = u8::from(accel == Accel::Kvm);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let path = dir.join("timed.img");
    std::fs::File::create(&path).unwrap().write_all(&sector).unwrap();
    path
}

/// What the guest's clocks showed at one time.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Grows by one with each.
    pub number: u32,
    pub tsc: u64,
    /// 24 bits.
    pub pm: u32,
    pub ticks: u32,
    /// Nanoseconds; 0 where there is none.
    pub kvmclock: u64,
}

/// The newest whole sample; None while there is none.
pub fn sample(memory: &Memory) -> Option<Sample> {
    let mut page = [0; PAGE_SIZE as usize];
    memory.read_run(PageRun { block: 0, first: 8, count: 1 }, &mut page).unwrap();
    let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    // The guest writes the number at the end first and that at the beginning last; pages are copied from the beginning.
    if word(0) == 0 || word(0) != word(0x28) {
        return None;
    }
    let tsc = long(8);
    // struct pvclock_vcpu_time_info (Linux, arch/x86/include/asm/pvclock-abi.h).
    let (version, stamp, base, scale, shift) =
        (word(0x100), long(0x108), long(0x110), word(0x118), i32::from(page[0x11c].cast_signed()));
    let kvmclock = if version == 0 || !version.is_multiple_of(2) {
        0
    } else {
        let passed = i128::from(tsc) - i128::from(stamp);
        let passed = if shift < 0 { passed >> -shift } else { passed << shift };
        base.wrapping_add_signed(((passed * i128::from(scale)) >> 32) as i64)
    };
    Some(Sample { number: word(0), tsc, pm: word(0x10), ticks: word(0x14), kvmclock })
}

/// Waits for a sample that was taken after now, and `more`.
pub fn await_samples(memory: &Memory, more: u32) -> Sample {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut from = None;
    loop {
        if let Some(sample) = sample(memory) {
            let from = *from.get_or_insert(sample.number);
            // After a reset it begins anew.
            if sample.number.wrapping_sub(from) > more {
                return sample;
            }
        }
        assert!(Instant::now() < deadline, "the guest writes no samples");
        std::thread::yield_now();
    }
}

/// How far guest and host have come since the first look.
pub struct Watch {
    memory: Arc<Memory>,
    first: Option<Times>,
    last: Option<(Sample, f64)>,
    pm: f64,
}

/// Seconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub host: f64,
    pub tsc: f64,
    pub pm: f64,
    pub ticks: f64,
    pub kvmclock: f64,
}

impl Times {
    /// How much faster than the host's each of the guest's clocks was, parts per million: TSC, PM timer, PIT, kvmclock.
    pub fn ppm(&self) -> [f64; 4] {
        [self.tsc, self.pm, self.ticks, self.kvmclock].map(|guest| (guest - self.host) / self.host * 1e6)
    }
}

impl Watch {
    pub fn new(memory: &Arc<Memory>) -> Watch {
        Watch { memory: memory.clone(), first: None, last: None, pm: 0.0 }
    }

    /// The guest goes on in another QEMU.
    pub fn moved(&mut self, memory: &Arc<Memory>) {
        self.memory = memory.clone();
    }

    /// Takes a sample into account. No clock may have gone back.
    pub fn look(&mut self) -> Sample {
        let (sample, now) = (await_samples(&self.memory, 0), host_seconds());
        if let Some((last, then)) = self.last {
            assert!(sample.tsc >= last.tsc, "the TSC went back: {last:?}, {sample:?}");
            assert!(sample.ticks >= last.ticks, "PIT interrupts: {last:?}, {sample:?}");
            assert!(sample.kvmclock >= last.kvmclock, "kvmclock went back: {last:?}, {sample:?}");
            // The PM timer wraps: how often, the host's clock tells.
            let (circle, step) = (f64::from(1 << 24), f64::from(sample.pm) - f64::from(last.pm));
            let step = step + circle * (((now - then) * PM_HZ - step) / circle).round();
            assert!(step >= 0.0, "the PM timer went back: {last:?}, {sample:?}");
            self.pm += step;
        }
        self.last = Some((sample, now));
        sample
    }

    /// Times since the first call. The freshest of some samples counts, because a guest may have been kept from running.
    pub fn times(&mut self, tsc_hz: f64) -> Times {
        let mut best: Option<Times> = None;
        for _ in 0..50 {
            let sample = self.look();
            let times = Times {
                host: host_seconds(),
                tsc: sample.tsc as f64 / tsc_hz,
                pm: self.pm / PM_HZ,
                ticks: f64::from(sample.ticks) / PIT_HZ,
                kvmclock: sample.kvmclock as f64 / 1e9,
            };
            if best.is_none_or(|b| times.pm - times.host > b.pm - b.host) {
                best = Some(times);
            }
        }
        let now = best.unwrap();
        let first = *self.first.get_or_insert(now);
        Times {
            host: now.host - first.host,
            tsc: now.tsc - first.tsc,
            pm: now.pm - first.pm,
            ticks: now.ticks - first.ticks,
            kvmclock: now.kvmclock - first.kvmclock,
        }
    }
}

/// CLOCK_MONOTONIC.
pub fn host_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// The host's TSC.
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
