//! Loaded into QEMU by LD_PRELOAD: creates two userfaultfds of QEMU's own address space and hands them to the keeper.
//!
//! A userfaultfd always belongs to the memory of the process that creates it (userfaultfd(2)), and stock QEMU makes none
//! that others can use; this system call must run inside. Everything else is done by the keeper on the descriptor it
//! receives. No libc is linked, so the library loads under any C library. Under KVM it also keeps the guest's clocks going:
//! [`kvm_clock`].
//!
//! The socket's number is in the environment as `NINEFOLD_UFFD_SOCKET`. One message is sent: two native 32-bit
//! integers, errno (0 on success) and the sender's process id, and a native 64-bit one, the address of
//! [`kvm_clock::CONTROL`]; with the descriptors as SCM_RIGHTS on success. The socket stays open: when QEMU is started
//! through a wrapper script, the script's interpreter sends a message too, and the
//! keeper uses the last one.
//!
//! `NINEFOLD_LOCK_MEMORY=1` (for tracking by soft-dirty bits): all memory of the process is locked as it comes to be used,
//! and the kernel makes no transparent huge pages of it. No option of QEMU 7.2 does the first without filling all memory
//! at once, and both must come before QEMU maps anything. Whether it worked is for the keeper to see, in `/proc`.
#![no_std]

mod kvm_clock;

use core::arch::asm;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

const SYS_CLOSE: usize = 3;
const SYS_IOCTL: usize = 16;
const SYS_GETPID: usize = 39;
const SYS_SENDMSG: usize = 46;
const SYS_MLOCKALL: usize = 151;
const SYS_PRCTL: usize = 157;
const SYS_OPENAT: usize = 257;
const SYS_USERFAULTFD: usize = 323;

const AT_FDCWD: usize = -100_isize as usize;
const O_RDWR: usize = 2;
const O_NONBLOCK: usize = 0o4000;
const O_CLOEXEC: usize = 0o2_000_000;
const MSG_NOSIGNAL: usize = 0x4000;
/// MCL_CURRENT, MCL_FUTURE and MCL_ONFAULT (mlockall(2)).
const MCL_ALL_ONFAULT: usize = 1 | 2 | 4;
const PR_SET_THP_DISABLE: usize = 41;
/// `_IO(0xAA, 0)`, linux/userfaultfd.h.
const USERFAULTFD_IOC_NEW: usize = 0xaa00;

/// A system call with four arguments and a fifth of 0 (syscall(2), x86-64): the result, or minus errno.
///
/// # Safety
/// Pointers among the arguments must be valid for the call.
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel clobbers rcx and r11 only; memory effects are the caller's to answer for.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") 0_usize, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[repr(C)]
struct Iovec {
    base: *const u8,
    len: usize,
}

#[repr(C)]
struct Msghdr {
    name: usize,
    namelen: usize,
    iov: *const Iovec,
    iovlen: usize,
    control: *const Control,
    controllen: usize,
    flags: usize,
}

/// A cmsghdr (cmsg(3)) with two descriptors.
#[repr(C)]
struct Control {
    len: usize,
    level: i32,
    kind: i32,
    fds: [i32; 2],
}

/// The number behind `key` (which ends in '=') in the environment.
///
/// # Safety
/// `envp` is a null-terminated array of C strings.
unsafe fn number_of(key: &[u8], mut envp: *const *const u8) -> Option<usize> {
    // SAFETY: reads stop at each string's NUL and at the array's null pointer.
    unsafe {
        while !(*envp).is_null() {
            let entry = *envp;
            let mut i = 0;
            while i < key.len() && *entry.add(i) == *key.as_ptr().add(i) {
                i += 1;
            }
            if i == key.len() {
                let mut number = 0_usize;
                while (*entry.add(i)).is_ascii_digit() {
                    number = number.wrapping_mul(10).wrapping_add((*entry.add(i) - b'0') as usize);
                    i += 1;
                }
                return Some(number);
            }
            envp = envp.add(1);
        }
    }
    None
}

/// The descriptor, or minus errno. Tries the system call, then the device that an administrator can open to others.
fn create() -> isize {
    // SAFETY: the only pointer is to a static C string.
    unsafe {
        let fd = syscall(SYS_USERFAULTFD, O_CLOEXEC | O_NONBLOCK, 0, 0, 0);
        if fd >= 0 {
            return fd;
        }
        let device = syscall(SYS_OPENAT, AT_FDCWD, c"/dev/userfaultfd".as_ptr() as usize, O_RDWR | O_CLOEXEC, 0);
        if device < 0 {
            return fd;
        }
        let made = syscall(SYS_IOCTL, device as usize, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK, 0);
        syscall(SYS_CLOSE, device as usize, 0, 0, 0);
        made
    }
}

/// glibc calls the functions in `.init_array` with main's arguments.
unsafe extern "C" fn start(_argc: i32, _argv: *const *const u8, envp: *const *const u8) {
    if envp.is_null() {
        return;
    }
    // SAFETY: the dynamic loader passes the process's environment.
    let [socket, lock] =
        unsafe { [number_of(b"NINEFOLD_UFFD_SOCKET=", envp), number_of(b"NINEFOLD_LOCK_MEMORY=", envp)] };
    if lock == Some(1) {
        // SAFETY: neither takes pointers; locking changes no contents.
        unsafe {
            syscall(SYS_PRCTL, PR_SET_THP_DISABLE, 1, 0, 0);
            syscall(SYS_MLOCKALL, MCL_ALL_ONFAULT, 0, 0, 0);
        }
    }
    let Some(socket) = socket else { return };
    let fds = [create(), create()];
    let failed = fds.into_iter().find(|fd| *fd < 0);
    // SAFETY: getpid takes no pointers.
    let pid = unsafe { syscall(SYS_GETPID, 0, 0, 0, 0) } as i32;
    let control = &raw const kvm_clock::CONTROL as u64;
    let text = [failed.map_or(0, |error| -error as i32), pid, control as i32, (control >> 32) as i32];
    let iov = Iovec { base: text.as_ptr().cast(), len: 16 };
    let control = Control { len: 24, level: 1, kind: 1, fds: fds.map(|fd| fd as i32) };
    let message = Msghdr {
        name: 0,
        namelen: 0,
        iov: &iov,
        iovlen: 1,
        control: if failed.is_some() { core::ptr::null() } else { &control },
        controllen: if failed.is_some() { 0 } else { 24 },
        flags: 0,
    };
    // SAFETY: all that the message points to lives until the call returns. The descriptors are ours to close: the
    // keeper's copies keep the userfaultfds alive.
    unsafe {
        syscall(SYS_SENDMSG, socket, &raw const message as usize, MSG_NOSIGNAL, 0);
        for fd in fds {
            if fd >= 0 {
                syscall(SYS_CLOSE, fd as usize, 0, 0, 0);
            }
        }
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: unsafe extern "C" fn(i32, *const *const u8, *const *const u8) = start;
