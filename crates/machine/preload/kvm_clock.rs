//! Lets kvmclock and the kernel's PIT go on while a checkpoint is taken.
//!
//! Under KVM both are the kernel's and run on while the guest stands still. QEMU reads kvmclock when it stops the guest and sets
//! it back when the guest goes on (KVM_SET_CLOCK); it loads the PIT anew (KVM_SET_PIT2), which then begins its interval again. The
//! keeper says in [`CONTROL`] when that is not wanted. ioctl(2) is the one place at which to stand in between.

use core::sync::atomic::{AtomicU64, Ordering};

/// What the keeper writes, from outside, before it lets the guest go on.
#[repr(C)]
pub struct Control {
    /// 1: the guest's clocks have gone on.
    keep: AtomicU64,
    /// Otherwise: by how much kvmclock is to be ahead of what QEMU sets, nanoseconds.
    gap: AtomicU64,
}

pub static CONTROL: Control = Control { keep: AtomicU64::new(0), gap: AtomicU64::new(0) };

/// `_IOW(0xae, 0x7b, struct kvm_clock_data)` and `_IOW(0xae, 0xa0, struct kvm_pit_state2)`, linux/kvm.h.
const KVM_SET_CLOCK: usize = 0x4030_ae7b;
const KVM_SET_PIT2: usize = 0x4070_aea0;
/// A `struct kvm_clock_data` in 64-bit words; the first is the clock in nanoseconds.
const CLOCK_WORDS: usize = 6;

unsafe extern "C" {
    /// Where errno is: glibc and musl have it.
    fn __errno_location() -> *mut i32;
}

/// Takes the C library's place. The third argument, which C declares as variadic, is in the same register.
///
/// # Safety
/// As ioctl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: i32, request: usize, argument: usize) -> i32 {
    let mut set = [0_u64; CLOCK_WORDS];
    let mut argument = argument;
    if request == KVM_SET_CLOCK || request == KVM_SET_PIT2 {
        if CONTROL.keep.load(Ordering::SeqCst) == 1 {
            return 0;
        }
        if request == KVM_SET_CLOCK && argument != 0 {
            // SAFETY: the caller passes a kvm_clock_data, which has this size and alignment.
            set = unsafe { *(argument as *const [u64; CLOCK_WORDS]) };
            set[0] = set[0].wrapping_add(CONTROL.gap.load(Ordering::SeqCst));
            argument = set.as_ptr() as usize;
        }
    }
    // SAFETY: the caller's promise; `set` lives until the call returns.
    let result = unsafe { crate::syscall(crate::SYS_IOCTL, fd as usize, request, argument, 0) };
    let _ = &set;
    if result < 0 {
        // SAFETY: the C library's own place for it.
        unsafe { *__errno_location() = -result as i32 };
        return -1;
    }
    result as i32
}
