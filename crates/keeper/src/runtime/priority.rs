//! Real-time priority for the threads that others wait for.
//!
//! They work for microseconds at a time, but a guest's output and a host's reputation hang on them: on a busy host a
//! thread of ordinary priority can wait for longer than its peer's patience. QEMU and everything else that these threads
//! start keep the ordinary priority.
//!
//! Linux wakes a real-time thread where it ran last and lets whoever runs there wait, also while another processor is
//! idle (`select_task_rq_rt` in kernel/sched/rt.c). Before work that takes longer such a thread therefore
//! [steps aside](step_aside) of the guest.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static RAISED: Cell<bool> = const { Cell::new(false) };
    /// Where a raised thread may run. Empty for one that is not.
    static ALLOWED: Cell<Processors> = const { Cell::new(Processors::NONE) };
}

/// A set of processors by their number.
#[derive(Clone, Copy)]
pub struct Processors(libc::cpu_set_t);

impl Processors {
    /// None at all.
    // SAFETY: a cpu_set_t is an array of integers, of which any bits are a value.
    pub const NONE: Self = Self(unsafe { std::mem::zeroed() });

    /// Puts one in. Those that the kernel's type has no room for (1024 and up) are ignored.
    pub fn insert(&mut self, number: usize) {
        if number < libc::CPU_SETSIZE as usize {
            // SAFETY: the number is within the set.
            unsafe { libc::CPU_SET(number, &mut self.0) };
        }
    }

    /// Whether it is in the set.
    pub fn contains(&self, number: usize) -> bool {
        // SAFETY: the number is within the set.
        number < libc::CPU_SETSIZE as usize && unsafe { libc::CPU_ISSET(number, &self.0) }
    }

    /// Those that are not in `others`.
    fn without(mut self, others: &Self) -> Self {
        for number in (0..libc::CPU_SETSIZE as usize).filter(|n| others.contains(*n)) {
            // SAFETY: the number is within the set.
            unsafe { libc::CPU_CLR(number, &mut self.0) };
        }
        self
    }

    fn is_empty(&self) -> bool {
        // SAFETY: the call reads the set.
        unsafe { libc::CPU_COUNT(&self.0) == 0 }
    }
}

impl std::fmt::Debug for Processors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..libc::CPU_SETSIZE as usize).filter(|n| self.contains(*n))).finish()
    }
}

/// Whether the refusal has been told.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Gives the calling thread the lowest real-time priority (sched(7), SCHED_RR), once. Without the privilege it stays as
/// it is, which is logged.
pub fn raise() {
    if RAISED.get() {
        return;
    }
    RAISED.set(true);
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads one sched_param from the pointer, which is valid; 0 is the calling thread.
    let failed = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &parameters) };
    if failed == 0 {
        let mut allowed = Processors::NONE;
        // SAFETY: the call writes at most so many bytes to the pointer, which is valid for them; 0 is the calling thread.
        let failed = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut allowed.0) };
        if failed == 0 {
            ALLOWED.set(allowed);
        }
    } else if !TOLD.swap(true, Ordering::Relaxed) {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "no real-time priority: under load this host may be taken for dead (needs CAP_SYS_NICE)");
    }
}

/// If the calling thread has real-time priority and runs where it would let one of `busy` wait: moves it to another
/// processor that it may use, if there is one. Free when it does not.
pub fn step_aside(busy: &Processors) {
    // SAFETY: the call has no preconditions.
    let here = unsafe { libc::sched_getcpu() };
    if !usize::try_from(here).is_ok_and(|here| busy.contains(here)) {
        return;
    }
    let elsewhere = ALLOWED.get().without(busy);
    if !elsewhere.is_empty() {
        // It moves at once, and is then as free as before: the guest moves too, and others of these threads come.
        may_run_on(&elsewhere);
        may_run_on(&ALLOWED.get());
    }
}

/// It can fail when the keeper's cpuset has become smaller: then the thread stays where it is.
fn may_run_on(processors: &Processors) {
    // SAFETY: the call reads so many bytes from the pointer, which is valid for them; 0 is the calling thread.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &processors.0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> Processors {
        let mut set = Processors::NONE;
        numbers.iter().for_each(|n| set.insert(*n));
        set
    }

    #[test]
    fn sets_of_processors() {
        let some = set(&[0, 3, 1023, 1024]);
        assert_eq!(format!("{some:?}"), "{0, 3, 1023}");
        assert_eq!(format!("{:?}", some.without(&set(&[3, 4]))), "{0, 1023}");
        assert!(some.without(&some).is_empty() && !some.is_empty());
        assert!(!some.contains(usize::MAX));
    }

    fn here() -> usize {
        // SAFETY: the call has no preconditions.
        usize::try_from(unsafe { libc::sched_getcpu() }).unwrap()
    }

    /// The guest's processors change while the thread works; a thread of its own, for its priority stays.
    #[test]
    fn a_raised_thread_makes_way() {
        std::thread::spawn(|| {
            raise();
            let allowed = ALLOWED.get();
            let numbers: Vec<_> = (0..libc::CPU_SETSIZE as usize).filter(|n| allowed.contains(*n)).collect();
            assert!(!numbers.is_empty(), "this needs CAP_SYS_NICE");
            for _ in 0..4 {
                let busy = set(&[here()]);
                step_aside(&busy);
                assert!(numbers.len() < 2 || !busy.contains(here()), "{numbers:?}");
            }
            step_aside(&set(&numbers));
            assert!(numbers.contains(&here()), "there is nowhere else");
        })
        .join()
        .unwrap();
    }
}
