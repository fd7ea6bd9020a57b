//! The kernel interfaces that no crate has: userfaultfd's ioctls (linux/userfaultfd.h) and PAGEMAP_SCAN
//! (linux/fs.h, Documentation/admin-guide/mm/pagemap.rst). Numbers are checked against the headers' by const assertions.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOC(dir, type, nr, size)` (asm-generic/ioctl.h); dir 3 is read and write, 2 is read.
const fn ioc(dir: u64, kind: u8, nr: u64, size: usize) -> u64 {
    dir << 30 | (size as u64) << 16 | (kind as u64) << 8 | nr
}

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioWriteprotect {
    range: UffdioRange,
    mode: u64,
}

#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`: bytes `start..end` of an address space that share categories.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PageRegion {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

const UFFDIO_API: u64 = ioc(3, 0xaa, 0x3f, size_of::<UffdioApi>());
const UFFDIO_REGISTER: u64 = ioc(3, 0xaa, 0, size_of::<UffdioRegister>());
const UFFDIO_UNREGISTER: u64 = ioc(2, 0xaa, 1, size_of::<UffdioRange>());
const UFFDIO_WAKE: u64 = ioc(2, 0xaa, 2, size_of::<UffdioRange>());
const UFFDIO_WRITEPROTECT: u64 = ioc(3, 0xaa, 6, size_of::<UffdioWriteprotect>());
const PAGEMAP_SCAN: u64 = ioc(3, b'f', 16, size_of::<PmScanArg>());

const _: () = {
    assert!(size_of::<PmScanArg>() == 96 && size_of::<PageRegion>() == 24);
    assert!(UFFDIO_API == 0xc018_aa3f && UFFDIO_REGISTER == 0xc020_aa00);
    assert!(size_of::<Trap>() == 32 && UFFDIO_WAKE == 0x8010_aa02);
    assert!(UFFDIO_UNREGISTER == 0x8010_aa01 && UFFDIO_WRITEPROTECT == 0xc018_aa06);
    assert!(PAGEMAP_SCAN == 0xc060_6610);
};

const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;

/// Write protection.
const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
/// Write protection of shared memory and huge pages.
pub(crate) const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Pages not there yet are protected too.
pub(crate) const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// The kernel resolves a write fault by itself and only keeps note (Linux 6.7).
pub(crate) const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
/// What tracking needs.
pub(crate) const UFFD_FEATURES: u64 =
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;

/// What trapping needs: the first write to a protected page waits until it is answered (Linux 5.19).
pub(crate) const UFFD_FEATURES_OF_TRAPS: u64 =
    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED;

const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_PAGEFAULT_FLAG_WP: u64 = 1 << 1;

/// `struct uffd_msg` of a page fault.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Trap {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    feature: u64,
}

impl Trap {
    /// The address of a write to a protected page, if it is one.
    pub(crate) fn write_to(&self) -> Option<u64> {
        (self.event == UFFD_EVENT_PAGEFAULT && self.flags & UFFD_PAGEFAULT_FLAG_WP != 0).then_some(self.address)
    }
}

const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;

/// # Safety
/// `argument` is what the request reads and writes.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> io::Result<i32> {
    loop {
        // SAFETY: the caller's promise; the descriptor is open.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// An ioctl without argument; its result.
pub(crate) fn ioctl_plain(fd: BorrowedFd<'_>, request: u64) -> io::Result<i32> {
    // SAFETY: the requests that this crate passes take no argument.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// UFFDIO_API: asks for `features`; answers what the kernel offers. Once per descriptor.
pub(crate) fn uffd_api(uffd: BorrowedFd<'_>, features: u64) -> io::Result<u64> {
    let mut api = UffdioApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the structure of this request.
    unsafe { ioctl(uffd, UFFDIO_API, &mut api) }.map(|_| api.features)
}

/// UFFDIO_REGISTER for write protection.
pub(crate) fn uffd_register(uffd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    let mut register = UffdioRegister { range: UffdioRange { start, len }, mode: UFFDIO_REGISTER_MODE_WP, ioctls: 0 };
    // SAFETY: the structure of this request.
    unsafe { ioctl(uffd, UFFDIO_REGISTER, &mut register) }.map(drop)
}

/// UFFDIO_UNREGISTER: the range is no longer protected.
pub(crate) fn uffd_unregister(uffd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    let mut range = UffdioRange { start, len };
    // SAFETY: the structure of this request.
    unsafe { ioctl(uffd, UFFDIO_UNREGISTER, &mut range) }.map(drop)
}

/// UFFDIO_WRITEPROTECT: from now on writes to the range are noted, also to pages that are not there yet.
pub(crate) fn uffd_protect(uffd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    write_protect(uffd, start, len, UFFDIO_WRITEPROTECT_MODE_WP)
}

fn write_protect(uffd: BorrowedFd<'_>, start: u64, len: u64, mode: u64) -> io::Result<()> {
    let mut protect = UffdioWriteprotect { range: UffdioRange { start, len }, mode };
    loop {
        // SAFETY: the structure of this request.
        match unsafe { ioctl(uffd, UFFDIO_WRITEPROTECT, &mut protect) } {
            // The address space is being changed by its owner; asking again is what userfaultfd(2) advises.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
            other => return other.map(drop),
        }
    }
}

/// UFFDIO_WRITEPROTECT without protection: the range can be written, and who waits for that goes on.
pub(crate) fn uffd_open(uffd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    write_protect(uffd, start, len, 0)
}

/// UFFDIO_WAKE: who is trapped in the range tries again.
pub(crate) fn uffd_wake(uffd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    let mut range = UffdioRange { start, len };
    // SAFETY: the structure of this request.
    unsafe { ioctl(uffd, UFFDIO_WAKE, &mut range) }.map(drop)
}

/// Trapped writes that wait for an answer, as read(2) of the descriptor gives them; how many. `WouldBlock` when there are
/// none.
pub(crate) fn uffd_read(uffd: BorrowedFd<'_>, out: &mut [Trap]) -> io::Result<usize> {
    // SAFETY: the kernel writes whole messages, integers only, into the slice.
    let read = unsafe { libc::read(uffd.as_raw_fd(), out.as_mut_ptr().cast(), size_of_val(out)) };
    match usize::try_from(read) {
        Ok(bytes) => Ok(bytes / size_of::<Trap>()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// PAGEMAP_SCAN of `start..end`: regions written since they were last protected go to `out` and are protected again, in
/// one step. Answers how many regions were filled and up to where the walk came.
pub(crate) fn pagemap_scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    out: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        start,
        end,
        walk_end: 0,
        vec: out.as_mut_ptr() as u64,
        vec_len: out.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: PAGE_IS_WRITTEN,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_WRITTEN,
    };
    // SAFETY: the structure of this request; `vec` has room for `vec_len` regions.
    let filled = unsafe { ioctl(pagemap, PAGEMAP_SCAN, &mut arg) }? as usize;
    Ok((filled.min(out.len()), arg.walk_end))
}
