//! The thread that answers trapped writes to cold regions, and what it shares with the scans.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::moment::{KEPT_AT_ONCE, Shared};
use super::regions::Regions;
use crate::blocks::PAGE_SIZE;
use crate::error::{MachineError, Result};
use crate::sys::{self, Trap};

/// Trapped writes that are taken with one system call.
const TRAPS: usize = 16;
/// So many pages are unregistered with one system call: 256 MiB. The kernel keeps all of QEMU's page faults waiting meanwhile.
const PIECE: u64 = 65_536;

/// A block with cold regions.
#[derive(Debug)]
pub(super) struct Watched {
    /// Where it is in QEMU.
    base: u64,
    regions: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub regions: Regions,
    /// What is to be kept before a page is opened.
    pub moment: Option<Arc<Shared>>,
    /// Why traps can no longer be answered; what is dirty is not known from then on.
    failed: Option<io::Error>,
}

impl Watched {
    pub(super) fn new(base: u64, bytes: u64) -> Watched {
        let state = State { regions: Regions::new(bytes / PAGE_SIZE), moment: None, failed: None };
        Watched { base, regions: Mutex::new(state) }
    }

    /// The regions. Whoever holds this keeps trapped writers waiting.
    ///
    /// # Errors
    /// `Io` when traps can no longer be answered.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        match state.failed.take() {
            Some(error) => {
                state.failed = Some(io::Error::from(error.kind()));
                Err(MachineError::Io { what: "answering the guest's first writes to memory", source: error })
            }
            None => Ok(state),
        }
    }

    /// Where pages of it are in QEMU: the address and the bytes.
    pub(super) fn place(&self, pages: &Range<u64>) -> (u64, u64) {
        (self.base + pages.start * PAGE_SIZE, (pages.end - pages.start) * PAGE_SIZE)
    }

    /// From here on writes are not followed any more.
    pub(super) fn end_moment(&self) {
        if let Some(moment) = self.state().moment.take() {
            moment.untracked();
        }
    }

    /// Takes every region from the userfaultfd that it belongs to, so that nobody is trapped any more. It fails for what is
    /// not registered and when QEMU is gone, which needs no mending. In between, trapped writes are answered as before.
    pub(super) fn release(&self, cold: BorrowedFd<'_>, hot: BorrowedFd<'_>) {
        let mut at = 0;
        loop {
            let state = self.state();
            let Some((alike, is_hot)) = state.regions.next_alike(at) else { return };
            let pages = at..alike.end.min(at + PIECE);
            let (start, bytes) = self.place(&pages);
            let _ = sys::uffd_unregister(if is_hot { hot } else { cold }, start, bytes);
            if !is_hot {
                // The kernel wakes those who wait only where pages are missing, not where writes are trapped.
                let _ = sys::uffd_wake(cold, start, bytes);
            }
            at = pages.end;
        }
    }

    /// A panic under the lock leaves sets of pages, which are whole at any time.
    fn state(&self) -> MutexGuard<'_, State> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread. Dropping this ends it: whoever is trapped from then on waits until the pages are unregistered.
#[derive(Debug)]
pub(super) struct Traps {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Traps {
    /// Answers what is trapped in `watched` by `uffd`. The thread calls `begin` first.
    pub(super) fn start(uffd: Arc<OwnedFd>, watched: Arc<Watched>, begin: fn()) -> Result<Traps> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(MachineError::os("eventfd"))?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("traps".into())
            .spawn(move || {
                begin();
                if let Err(error) = answer(&uffd, &stopped, &watched) {
                    // Nobody waits for an answer that does not come; the next scan fails.
                    watched.state().failed = Some(error);
                    watched.end_moment();
                    watched.release(uffd.as_fd(), uffd.as_fd());
                }
            })
            .map_err(MachineError::io("starting the thread for trapped writes"))?;
        Ok(Traps { stop, thread: Some(thread) })
    }
}

impl Drop for Traps {
    fn drop(&mut self) {
        // Cannot fail for an eventfd that is written once.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until told to stop, or QEMU has ended.
fn answer(uffd: &OwnedFd, stop: &OwnedFd, watched: &Watched) -> io::Result<()> {
    let mut traps = [Trap::default(); TRAPS];
    loop {
        let mut ready = [PollFd::new(uffd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let [ours, end] = [ready[0].revents(), ready[1].revents()];
        if end.intersects(PollFlags::IN) {
            return Ok(());
        }
        let count = match sys::uffd_read(uffd.as_fd(), &mut traps) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if ours.intersects(PollFlags::ERR | PollFlags::HUP) {
                    return Err(io::Error::other("the kernel tells of no more writes"));
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        for trap in &traps[..count] {
            let address = trap.write_to().ok_or_else(|| io::Error::other("a message that is not a write"))?;
            match open(uffd, watched, address) {
                // The address space is gone: QEMU has ended, and its end is noticed elsewhere.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                other => other?,
            }
        }
    }
}

/// Lets the writer go on, and notes the page. The lock is held over both: a scan in between would protect the page again
/// first, and then it would be open and in no list. Under the same lock what the page holds is kept, if it is to be. When there is
/// no room for that, the writer waits, but not the scans.
fn open(uffd: &OwnedFd, watched: &Watched, address: u64) -> io::Result<()> {
    let page = address.wrapping_sub(watched.base) / PAGE_SIZE;
    loop {
        let mut state = watched.state();
        let held = state.moment.as_ref().filter(|moment| !moment.over());
        let Some(pages) = state.regions.would_open(page, held.map_or(u64::MAX, |_| KEPT_AT_ONCE)) else {
            // It became hot after the writer was trapped.
            return sys::uffd_wake(uffd.as_fd(), address & !(PAGE_SIZE - 1), PAGE_SIZE);
        };
        if let Some(moment) = held
            && !moment.keep(pages.start, pages.end)
        {
            let moment = Arc::clone(moment);
            drop(state);
            moment.wait_for_room();
            continue;
        }
        state.regions.opened(&pages);
        let (start, bytes) = watched.place(&pages);
        return match sys::uffd_open(uffd.as_fd(), start, bytes) {
            // The range is not registered (any more): nothing is in the writer's way but that it sleeps.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                sys::uffd_wake(uffd.as_fd(), address & !(PAGE_SIZE - 1), PAGE_SIZE)
            }
            other => other,
        };
    }
}
