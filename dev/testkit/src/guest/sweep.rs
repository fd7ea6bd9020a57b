//! A guest of one boot sector that writes all of its memory again and again, as fast as it can.
//!
//! In its `n`th sweep it writes `n` into the first and the last word of each page, one page after the other. So at any moment the
//! pages up to one hold `n`, and those behind it `n - 1`: memory that is not of one moment shows.
#![allow(dead_code, reason = "each test file uses a part")]

use std::arch::global_asm;
use std::path::{Path, PathBuf};

use ninefold_machine::{Memory, PAGE_SIZE, PageRun};

/// Guest memory, MiB.
pub const MEMORY_MIB: u64 = 256;
/// Physical addresses between which it writes. Behind them the firmware has tables.
const FIRST: u64 = 1 << 20;
const END: u64 = (MEMORY_MIB - 1) << 20;
/// Physical address of the 32-bit number of the sweep.
pub const SWEEP: u64 = 0x500;
/// The same of where it writes; 0 while a sweep begins.
const AT: u64 = 0x504;

global_asm!(
    r#"
    .section .rodata.nf_sweep, "a"
    .globl nf_sweep
    .globl nf_sweep_end
    .code16
nf_sweep:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl (s_gdtr - nf_sweep + 0x7c00)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $(s_flat - nf_sweep + 0x7c00)
    .code32
s_flat:
    movw $16, %ax
    movw %ax, %ds
    movl $1, %ebx
1:  movl $0, 0x504
    movl %ebx, 0x500
    movl $0x100000, %edi
2:  movl %edi, 0x504
    movl %ebx, (%edi)
    movl %ebx, 0xffc(%edi)
    addl $0x1000, %edi
    cmpl ${end}, %edi
    jne 2b
    incl %ebx
    jmp 1b
    .balign 8
s_gdt:
    .quad 0
    .quad 0x00cf9a000000ffff
    .quad 0x00cf92000000ffff
s_gdtr:
    .word 23
    .long (s_gdt - nf_sweep + 0x7c00)
nf_sweep_end:
    .code64
    .text
    "#,
    end = const END,
    options(att_syntax)
);

unsafe extern "C" {
    static nf_sweep: u8;
    static nf_sweep_end: u8;
}

/// Writes the boot sector to a file.
pub fn boot_sector(dir: &Path) -> PathBuf {
    // SAFETY: both symbols are in the section above, in this order.
    unsafe { super::write_sector(&dir.join("sweep.img"), &raw const nf_sweep, &raw const nf_sweep_end) }
}

/// Waits until the guest has begun `by` more sweeps.
pub fn await_sweeps(memory: &Memory, by: u32) {
    super::await_count(memory, SWEEP, by);
}

/// Where a guest that stands still is in its sweep: by its memory (the number, and where it writes), and by its processor (`EBX` and
/// `EDI` of QEMU's `info registers`).
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub memory: (u64, u64),
    pub processor: (u64, u64),
}

impl Place {
    pub fn of(memory: &Memory, registers: &str) -> Place {
        let register = |name: &str| {
            let value = registers.split(name).nth(1).and_then(|rest| rest.get(..8));
            let value = value.unwrap_or_else(|| panic!("no {name} in {registers}"));
            u64::from_str_radix(value, 16).unwrap()
        };
        let word = |address| u64::from(super::word(memory, address));
        Place { memory: (word(SWEEP), word(AT)), processor: (register("EBX="), register("EDI=")) }
    }

    /// Whether memory and processor are of one moment, to the instruction.
    pub fn is_one(self) -> bool {
        let ((n, at), (ebx, edi)) = (self.memory, self.processor);
        match at {
            // From one sweep to the next.
            0 => (ebx == n || ebx == n + 1) && (edi == END || edi == FIRST),
            at => edi == at && ebx == n || edi == at + PAGE_SIZE && (ebx == n || ebx == n + 1 && edi == END),
        }
    }
}

/// Fails unless the memory of a guest that stands still is of one moment; the number of the sweep.
pub fn is_of_one_moment(memory: &Memory) -> u32 {
    let (n, at) = (super::word(memory, SWEEP), u64::from(super::word(memory, AT)));
    let mut page = [0; PAGE_SIZE as usize];
    let (uniform, mut before) = (super::word(memory, FIRST), n);
    for number in FIRST / PAGE_SIZE..END / PAGE_SIZE {
        memory.read_run(PageRun { block: 0, first: number, count: 1 }, &mut page).unwrap();
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let (first, last) = (word(0), word(PAGE_SIZE as usize - 4));
        for found in [first, last] {
            let right = match at {
                // All that is known is that a sweep has ended.
                0 => found == uniform && (found == n || found == n - 1),
                at if number * PAGE_SIZE < at => found == n,
                at if number * PAGE_SIZE > at => found == n - 1,
                _ => found == n || found == n - 1,
            };
            assert!(
                right && found <= before,
                "page {number} is of sweep {found}; the guest was at {at:#x} in sweep {n}"
            );
            before = found;
        }
    }
    n
}
