//! A guest of one boot sector with a watchdog: an i6300esb of one second, or an ib700 of two (or ten).
//!
//! It arms it, says `up` on the serial console, and then pats it without end. On the console it obeys: `h` hangs (no more
//! pats until it is reset), `H` hangs now and after every reset, `p` panics (pvpanic).

use std::arch::global_asm;
use std::path::{Path, PathBuf};

/// Physical address of the 32-bit count of rounds since the last reset.
pub const COUNTER: u64 = 0x500;
/// The same of starts, the first one included. The firmware leaves it alone.
pub const STARTS: u64 = 0x20_0000;

/// What an image does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Behaviour {
    /// As the module says.
    Works = 0,
    /// Does nothing at all.
    Dead = 1,
    /// Arms its watchdog and hangs.
    Hangs = 2,
    /// Says `healthy`, too.
    SaysHealthy = 3,
    /// Panics at once.
    Panics = 4,
    /// As `Works`; its ib700 has ten seconds.
    Slow = 5,
}

global_asm!(
    r#"
    .section .rodata.nf_watched, "a"
    .globl nf_watched
    .globl nf_watched_end
    .code16
nf_watched:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl (w_gdtr - nf_watched + 0x7c00)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $(w_flat - nf_watched + 0x7c00)
    .code32
w_flat:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x7000, %esp
    movl $0, 0x500
    movb $0, 0x504
    incl 0x200000
    movb 0x7dfd, %cl
    cmpb $1, %cl
    je w_dead
    cmpb $4, %cl
    je w_panic
    movl $0x80000000, %ebx
1:  movl %ebx, %eax
    call w_config
    inl %dx, %eax
    cmpl $0x25ab8086, %eax
    je 2f
    addl $0x800, %ebx
    cmpl $0x80010000, %ebx
    jne 1b
    xorl %edi, %edi
    jmp 3f
2:  leal 0x10(%ebx), %eax
    call w_config
    inl %dx, %eax
    andl $0xfffffff0, %eax
    movl %eax, %edi
    leal 0x60(%ebx), %eax
    call w_config
    xorl %eax, %eax
    outw %ax, %dx
    call w_unlock
    movl $512, (%edi)
    call w_unlock
    movl $512, 4(%edi)
    leal 0x68(%ebx), %eax
    call w_config
    movb $2, %al
    outb %al, %dx
3:  call w_pat
    cmpb $2, 0x7dfd
    je w_dead
    movl $(w_up - nf_watched + 0x7c00), %esi
    call w_print
    cmpb $3, 0x7dfd
    jne w_loop
    movl $(w_healthy - nf_watched + 0x7c00), %esi
    call w_print
w_loop:
    incl 0x500
    movl $20000, %ecx
4:  loop 4b
    movb 0x504, %al
    orb 0x201000, %al
    jnz 5f
    call w_pat
5:  movw $0x3fd, %dx
    inb %dx, %al
    testb $1, %al
    jz w_loop
    movw $0x3f8, %dx
    inb %dx, %al
    cmpb $'h', %al
    jne 6f
    movb $1, 0x504
6:  cmpb $'H', %al
    jne 7f
    movb $1, 0x201000
7:  cmpb $'p', %al
    jne w_loop
w_panic:
    movw $0x505, %dx
    movb $1, %al
    outb %al, %dx
w_dead:
    hlt
    jmp w_dead
w_config:
    movw $0xcf8, %dx
    outl %eax, %dx
    movw $0xcfc, %dx
    ret
w_unlock:
    movw $0x80, 12(%edi)
    movw $0x86, 12(%edi)
    ret
w_pat:
    testl %edi, %edi
    jz 8f
    call w_unlock
    movw $0x100, 12(%edi)
    ret
8:  movw $0x443, %dx
    movb $14, %al
    cmpb $5, 0x7dfd
    jne 11f
    movb $10, %al
11: outb %al, %dx
    ret
w_print:
9:  movw $0x3fd, %dx
    inb %dx, %al
    testb $0x20, %al
    jz 9b
    lodsb
    testb %al, %al
    jz 10f
    movw $0x3f8, %dx
    outb %al, %dx
    jmp 9b
10: ret
w_up:
    .asciz "up\n"
w_healthy:
    .asciz "healthy\n"
    .balign 8
w_gdt:
    .quad 0
    .quad 0x00cf9a000000ffff
    .quad 0x00cf92000000ffff
w_gdtr:
    .word 23
    .long (w_gdt - nf_watched + 0x7c00)
nf_watched_end:
    .code64
    .text
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static nf_watched: u8;
    static nf_watched_end: u8;
}

/// Writes an image that behaves so to a file.
pub fn image(dir: &Path, behaviour: Behaviour) -> PathBuf {
    let (start, end) = (&raw const nf_watched, &raw const nf_watched_end);
    let length = end as usize - start as usize;
    // SAFETY: both symbols are in the section above, in this order.
    let code = unsafe { std::slice::from_raw_parts(start, length) };
    let mut sector = [0; 512];
    assert!(length <= 509, "{length} bytes do not fit");
    sector[..length].copy_from_slice(code);
    // Where the code looks for it: 0x7dfd.
    sector[509] = behaviour as u8;
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let path = dir.join(format!("{behaviour:?}.img"));
    std::fs::write(&path, sector).unwrap();
    path
}
