//! A guest of one boot sector that sleeps, and switches itself off, as its ACPI tables say.
//!
//! It says `up` on the serial console, and then counts. On the console it obeys: `s` suspends it to memory until somebody wakes it, `a` until
//! its real-time clock's alarm three seconds later. Woken, it says `awake` and counts on. When its power button is pressed it
//! switches itself off, unless `d` has made it deaf, which it says.

use std::arch::global_asm;
use std::path::{Path, PathBuf};

/// Physical address of the 32-bit count of rounds.
pub const COUNTER: u64 = 0x500;

global_asm!(
    r#"
    .section .rodata.nf_sleeper, "a"
    .globl nf_sleeper
    .globl nf_sleeper_end
    .code16
nf_sleeper:
    cli
    xorl %ebp, %ebp
    jmp s_both
s_wakes:
    cli
    movl $1, %ebp
s_both:
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl (s_gdtr - nf_sleeper + 0x7c00)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $(s_flat - nf_sleeper + 0x7c00)
    .code32
s_flat:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x7000, %esp
    movl $0xe0000, %esi
1:  cmpl $0x20445352, (%esi)
    jne 2f
    cmpl $0x20525450, 4(%esi)
    je 3f
2:  addl $16, %esi
    jmp 1b
3:  movl 16(%esi), %esi
    addl $36, %esi
4:  lodsl
    cmpl $0x50434146, (%eax)
    jne 4b
    movl %eax, %edi
    movl $(s_up - nf_sleeper + 0x7c00), %esi
    testl %ebp, %ebp
    jz 5f
    movl $(s_awake - nf_sleeper + 0x7c00), %esi
5:  movl 56(%edi), %edx
    movw $0xffff, %ax
    outw %ax, %dx
    addl $2, %edx
    movw $0x500, %ax
    outw %ax, %dx
    call s_print
    xorl %ebp, %ebp
s_loop:
    incl 0x500
    movl $2000, %ecx
6:  loop 6b
    testl %ebp, %ebp
    jnz 7f
    movl 56(%edi), %edx
    inw %dx, %ax
    testb $1, %ah
    jz 7f
    movl 64(%edi), %edx
    movw $0x2000, %ax
    outw %ax, %dx
7:  movw $0x3fd, %dx
    inb %dx, %al
    testb $1, %al
    jz s_loop
    movw $0x3f8, %dx
    inb %dx, %al
    cmpb $'d', %al
    jne 8f
    incl %ebp
    movl $(s_deaf - nf_sleeper + 0x7c00), %esi
    call s_print
    jmp s_loop
8:  cmpb $'s', %al
    je s_sleep
    cmpb $'a', %al
    jne s_loop
    movb $0, %al
    call s_clock
    addb $3, %al
    daa
    cmpb $0x60, %al
    jb 9f
    subb $0x60, %al
9:  movb %al, %ah
    movb $1, %al
    call s_set
    movw $0xff03, %ax
    call s_set
    movw $0xff05, %ax
    call s_set
    movb $0x0c, %al
    call s_clock
    movw $0x220b, %ax
    call s_set
s_sleep:
    movl 36(%edi), %ebx
    movl $(s_wakes - nf_sleeper + 0x7c00), 12(%ebx)
    movl 64(%edi), %edx
    movw $0x2400, %ax
    outw %ax, %dx
10: jmp 10b
s_clock:
    outb %al, $0x70
    inb $0x71, %al
    ret
s_set:
    outb %al, $0x70
    movb %ah, %al
    outb %al, $0x71
    ret
s_print:
11: movw $0x3fd, %dx
    inb %dx, %al
    testb $0x20, %al
    jz 11b
    lodsb
    testb %al, %al
    jz 12f
    movw $0x3f8, %dx
    outb %al, %dx
    jmp 11b
12: ret
s_up:
    .asciz "up\n"
s_deaf:
    .asciz "deaf\n"
s_awake:
    .asciz "awake\n"
    .balign 8
s_gdt:
    .quad 0
    .quad 0x00cf9a000000ffff
    .quad 0x00cf92000000ffff
s_gdtr:
    .word 23
    .long (s_gdt - nf_sleeper + 0x7c00)
nf_sleeper_end:
    .code64
    .text
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static nf_sleeper: u8;
    static nf_sleeper_end: u8;
}

/// Writes the image to a file.
pub fn image(dir: &Path) -> PathBuf {
    let (start, end) = (&raw const nf_sleeper, &raw const nf_sleeper_end);
    let length = end as usize - start as usize;
    // SAFETY: both symbols are in the section above, in this order.
    let code = unsafe { std::slice::from_raw_parts(start, length) };
    let mut sector = [0; 512];
    assert!(length <= 510, "{length} bytes do not fit");
    sector[..length].copy_from_slice(code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let path = dir.join("sleeper.img");
    std::fs::write(&path, sector).unwrap();
    path
}
