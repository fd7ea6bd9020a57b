//! The thread that answers trapped writes to cold regions, and what it shares with the scans.
//!
//! It waits for nothing but the next message: a write that has to wait for room in a moment ([`super::moment`]) is put aside, and
//! those that need not wait are answered meanwhile.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::moment::{End, KEPT_AT_ONCE, Shared};
use super::regions::Regions;
use crate::blocks::PAGE_SIZE;
use crate::error::{MachineError, Result};
use crate::sys::{self, Trap};

/// Trapped writes that are taken with one system call.
const TRAPS: usize = 16;
/// Writes that are put aside at most, more than most guests have vCPUs and devices. Further ones wait in the kernel.
const ASIDE: usize = 256;
/// So many pages are unregistered or protected with one system call: 256 MiB. The kernel keeps all of QEMU's page faults, and under KVM
/// all vCPUs, waiting meanwhile.
const PIECE: u64 = 65_536;

/// All pages of a block, in pieces that are small enough for a guest that runs.
pub(super) fn pieces(pages: u64) -> impl Iterator<Item = Range<u64>> {
    (0..pages.div_ceil(PIECE)).map(move |number| number * PIECE..((number + 1) * PIECE).min(pages))
}

/// A block with cold regions.
#[derive(Debug)]
pub(super) struct Watched {
    /// Where it is in QEMU.
    base: u64,
    regions: Mutex<State>,
    /// An eventfd: writes that were put aside are to be tried again.
    pub room: Arc<OwnedFd>,
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
    pub(super) fn new(base: u64, bytes: u64) -> Result<Watched> {
        let state = State { regions: Regions::new(bytes / PAGE_SIZE), moment: None, failed: None };
        let room = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(MachineError::os("eventfd"))?;
        Ok(Watched { base, regions: Mutex::new(state), room: Arc::new(room) })
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
        let moment = self.state().moment.take();
        if let Some(moment) = moment {
            moment.end(End::Untracked);
        }
    }

    /// For how long those that were put aside still wait; None when none has to.
    fn left(&self) -> Option<Timespec> {
        let moment = self.state().moment.clone();
        let left = moment?.left()?;
        Some(Timespec { tv_sec: i64::try_from(left.as_secs()).ok()?, tv_nsec: i64::from(left.subsec_nanos()) })
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
    // Addresses that were put aside, oldest first.
    let mut aside = Vec::with_capacity(ASIDE);
    loop {
        let more = if aside.len() < ASIDE { PollFlags::IN } else { PollFlags::empty() };
        let mut ready =
            [PollFd::new(uffd, more), PollFd::new(stop, PollFlags::IN), PollFd::new(&watched.room, PollFlags::IN)];
        // When it is over, so is the moment, which rings.
        let limit = if aside.is_empty() { None } else { watched.left() };
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let [ours, end, room] = ready.map(|fd| fd.revents());
        if end.intersects(PollFlags::IN) {
            return Ok(());
        }
        if room.intersects(PollFlags::IN) {
            // Before they are tried: what happens afterwards rings again.
            let _ = rustix::io::read(&watched.room, &mut [0; 8]);
            if !again(uffd, watched, &mut aside)? {
                return Ok(());
            }
        }
        let most = TRAPS.min(ASIDE - aside.len());
        if most == 0 {
            continue;
        }
        let count = match sys::uffd_read(uffd.as_fd(), &mut traps[..most]) {
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
            match open(uffd, watched, address)? {
                Answer::Given => {}
                Answer::Aside => aside.push(address),
                Answer::Ended => return Ok(()),
            }
        }
    }
}

/// What became of a trapped write.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Given,
    /// There is no room: it is to be tried again.
    Aside,
    /// The address space is gone: QEMU has ended, and its end is noticed elsewhere.
    Ended,
}

/// Tries those again that were put aside. False when QEMU has ended.
fn again(uffd: &OwnedFd, watched: &Watched, aside: &mut Vec<u64>) -> io::Result<bool> {
    let mut result = Ok(true);
    aside.retain(|address| {
        if !matches!(result, Ok(true)) {
            return true;
        }
        match open(uffd, watched, *address) {
            Ok(answer) => {
                result = Ok(answer != Answer::Ended);
                answer == Answer::Aside
            }
            Err(error) => {
                result = Err(error);
                true
            }
        }
    });
    result
}

/// Lets the writer go on, and notes the page. The lock is held over both: a scan in between would protect the page again
/// first, and then it would be open and in no list. Under the same lock what the page holds is kept, if it is to be.
fn open(uffd: &OwnedFd, watched: &Watched, address: u64) -> io::Result<Answer> {
    let page = address.wrapping_sub(watched.base) / PAGE_SIZE;
    let wake = || sys::uffd_wake(uffd.as_fd(), address & !(PAGE_SIZE - 1), PAGE_SIZE);
    let mut state = watched.state();
    let held = state.moment.as_ref().filter(|moment| !moment.over());
    let answered = match state.regions.would_open(page, held.map_or(u64::MAX, |_| KEPT_AT_ONCE)) {
        // It became hot after the writer was trapped.
        None => wake(),
        Some(mut pages) => {
            if let Some(moment) = held {
                pages.end = moment.keep(pages.start, pages.end);
                if pages.is_empty() {
                    return Ok(Answer::Aside);
                }
            }
            state.regions.opened(&pages);
            let (start, bytes) = watched.place(&pages);
            match sys::uffd_open(uffd.as_fd(), start, bytes) {
                // The range is not registered (any more): nothing is in the writer's way but that it sleeps.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => wake(),
                other => other,
            }
        }
    };
    match answered {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Answer::Ended),
        other => other.map(|()| Answer::Given),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags};

    use super::*;
    use crate::dirty::Pages;
    use crate::dirty::moment::{Moment, ROOM};
    use crate::dirty::patience::Patience;
    use crate::ram::Ram;

    #[test]
    fn pieces_are_short_and_leave_nothing_out() {
        for pages in [0, 1, PIECE - 1, PIECE, PIECE + 1, 64 << 18] {
            let mut end = 0;
            for piece in pieces(pages) {
                assert!(piece.start == end && piece.end > end && piece.end - end <= PIECE);
                end = piece.end;
            }
            assert_eq!(end, pages);
        }
    }

    /// What any step may take; only so that a failure ends.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Memory that is mapped as QEMU does it, all of it trapped. It is never unmapped.
    struct Trapped {
        base: usize,
        watched: Arc<Watched>,
        _traps: Traps,
    }

    impl Trapped {
        /// None where the kernel has no such traps.
        fn new(ram: &Ram) -> Option<Trapped> {
            let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
            // SAFETY: a new descriptor; no memory is affected until a range is registered.
            let uffd = unsafe { rustix::mm::userfaultfd(flags) }.ok()?;
            sys::uffd_api(uffd.as_fd(), sys::UFFD_FEATURES_OF_TRAPS).ok()?;
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let length = ram.bytes() as usize;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, ram, 0) };
            let base = base.unwrap() as usize;
            let watched = Arc::new(Watched::new(base as u64, ram.bytes()).unwrap());
            let uffd = Arc::new(uffd);
            let traps = Traps::start(Arc::clone(&uffd), Arc::clone(&watched), || ()).unwrap();
            sys::uffd_register(uffd.as_fd(), base as u64, ram.bytes()).unwrap();
            sys::uffd_protect(uffd.as_fd(), base as u64, ram.bytes()).unwrap();
            Some(Trapped { base, watched, _traps: traps })
        }

        /// As a vCPU would.
        fn write(&self, page: u64) {
            let to = self.base + (page * PAGE_SIZE) as usize;
            // SAFETY: in the mapping of `new`, which is aligned and to which nothing refers.
            unsafe { std::ptr::write_volatile(to as *mut u64, u64::MAX) };
        }
    }

    /// Writes that need no room are answered while more writes than are put aside wait for some, and all of those go on when there is.
    #[test]
    fn who_need_not_wait_is_not_kept_waiting_by_those_who_have_to() {
        const READ: u64 = 256;
        const WRITERS: u64 = ASIDE as u64 + 40;
        let pages = READ + ROOM + WRITERS;
        let ram = Arc::new(Ram::create(pages * PAGE_SIZE).unwrap());
        (0..pages).for_each(|page| ram.write(page * PAGE_SIZE, &(page + 1).to_le_bytes()));
        let Some(guest) = Trapped::new(&ram) else {
            eprintln!("skipped: this kernel has no userfaultfd for writes");
            return;
        };
        let moment = Moment::with(&ram, Patience::of(Duration::from_secs(3600)));
        moment.shared().hold(&guest.watched.room);
        guest.watched.state().moment = Some(Arc::clone(moment.shared()));
        let mut out = Pages::default();
        assert!(moment.next(&mut out).unwrap());
        assert_eq!(moment.shared().keep(READ, READ + ROOM), READ + ROOM);

        let guest = Arc::new(guest);
        let (done, went_on) = channel();
        let write = |page| {
            let (guest, done) = (Arc::clone(&guest), done.clone());
            std::thread::spawn(move || {
                guest.write(page);
                done.send(page).unwrap();
            })
        };
        write(READ + ROOM);
        while moment.waited() == Duration::ZERO {
            std::thread::yield_now();
        }
        // It was read before, and is trapped still.
        write(3);
        assert_eq!(went_on.recv_timeout(LIMIT).unwrap(), 3);

        (READ + ROOM + 1..pages).for_each(|page| drop(write(page)));
        let mut found = vec![false; pages as usize];
        while moment.next(&mut out).unwrap() {
            let mut contents = out.bytes.chunks(PAGE_SIZE as usize);
            for run in &out.runs {
                for page in run.first..run.first + u64::from(run.count) {
                    assert_eq!(contents.next().unwrap()[..8], (page + 1).to_le_bytes());
                    assert!(!std::mem::replace(&mut found[page as usize], true));
                }
            }
        }
        assert!(found.iter().skip(READ as usize).all(|found| *found));
        let mut gone_on: Vec<u64> = (0..WRITERS).map(|_| went_on.recv_timeout(LIMIT).unwrap()).collect();
        gone_on.sort_unstable();
        assert!(gone_on.into_iter().eq(READ + ROOM..pages));
    }
}
