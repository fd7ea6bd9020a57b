//! What this host's kernel can do for tracking. Each mechanism is tried on a few pages of this process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags};

use super::Mechanism;
use super::process_files::ProcessFiles;
use crate::blocks::PAGE_SIZE;
use crate::sys::{self, PageRegion};

/// Since 6.1 a page that was dirty before the kernel moved it is so afterwards.
const OLDEST_FOR_SOFT_DIRTY: (u32, u32) = (6, 1);

/// Which mechanism VMs are tracked with here, or why none.
///
/// # Errors
/// For a person: what is missing for either of them.
pub fn mechanism() -> Result<Mechanism, String> {
    match (pagemap_scan(), soft_dirty()) {
        (Ok(()), _) => Ok(Mechanism::PagemapScan),
        (_, Ok(())) => Ok(Mechanism::SoftDirty),
        (Err(scan), Err(soft)) => Err(format!("{scan}; soft-dirty bits: {soft}")),
    }
}

/// A userfaultfd of this process with the features that tracking needs.
pub(crate) fn userfaultfd() -> Result<OwnedFd, String> {
    // SAFETY: a new descriptor; no memory is affected until a range is registered.
    let fd = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }
        .map_err(|error| format!("userfaultfd(2): {error}"))?;
    sys::uffd_api(fd.as_fd(), sys::UFFD_FEATURES)
        .map_err(|error| format!("the kernel has no asynchronous write protection ({error})"))?;
    Ok(fd)
}

/// Whether PAGEMAP_SCAN finds exactly the page that was written.
pub(crate) fn pagemap_scan() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(|| userfaultfd().and_then(|fd| try_pagemap_scan(&fd))).clone()
}

/// Whether soft-dirty bits work, and whether what they need is set.
pub(crate) fn soft_dirty() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(try_soft_dirty).clone()?;
    // These can change while we run.
    fit_for_soft_dirty(rustix::system::uname().release().to_str().unwrap_or_default(), |name| {
        std::fs::read_to_string(format!("/proc/sys/{name}")).ok()
    })
}

/// A kernel's release and its settings (by their path below `/proc/sys`; None: the kernel has none such).
fn fit_for_soft_dirty(release: &str, setting: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST_FOR_SOFT_DIRTY {
        return Err(format!("Linux {release} is too old: 6.1 or newer is needed"));
    }
    for (name, key) in [
        ("vm/compact_unevictable_allowed", "vm.compact_unevictable_allowed"),
        ("kernel/numa_balancing", "kernel.numa_balancing"),
    ] {
        if setting(name).is_some_and(|value| value.trim() != "0") {
            return Err(format!("the kernel may move locked pages ({key} is not 0)"));
        }
    }
    Ok(())
}

/// Pages of this process to try with.
struct OwnPages {
    base: *mut core::ffi::c_void,
}

impl OwnPages {
    const COUNT: u64 = 4;

    /// New, untouched pages.
    fn map(kind: MapFlags) -> io::Result<OwnPages> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), Self::bytes(), ProtFlags::READ | ProtFlags::WRITE, kind)
        }?;
        Ok(OwnPages { base })
    }

    const fn bytes() -> usize {
        (Self::COUNT * PAGE_SIZE) as usize
    }

    fn start(&self) -> u64 {
        self.base as u64
    }

    fn write(&self, page: u64) {
        assert!(page < Self::COUNT);
        // SAFETY: inside the mapping, which nothing else knows.
        unsafe { self.base.cast::<u8>().add((page * PAGE_SIZE) as usize).write_volatile(1) };
    }
}

impl Drop for OwnPages {
    fn drop(&mut self) {
        // SAFETY: the mapping made above; no reference to it is left.
        let _ = unsafe { rustix::mm::munmap(self.base, Self::bytes()) };
    }
}

/// Protects four empty pages, writes to the third, and expects the scan to find that one, once.
fn try_pagemap_scan(fd: &OwnedFd) -> Result<(), String> {
    let tried = (|| {
        let pages = OwnPages::map(MapFlags::PRIVATE)?;
        let start = pages.start();
        let end = start + OwnPages::bytes() as u64;
        let pagemap = File::open("/proc/self/pagemap")?;
        sys::uffd_register(fd.as_fd(), start, end - start)?;
        sys::uffd_protect(fd.as_fd(), start, end - start)?;
        pages.write(2);
        let scan = || {
            let mut regions = [PageRegion::default(); OwnPages::COUNT as usize];
            let (count, _) = sys::pagemap_scan(pagemap.as_fd(), start, end, &mut regions)?;
            let pages = regions[..count].iter().map(|r| ((r.start - start) / PAGE_SIZE, (r.end - start) / PAGE_SIZE));
            Ok::<_, io::Error>(pages.collect::<Vec<_>>())
        };
        Ok((scan()?, scan()?))
    })();
    match tried {
        Ok((first, second)) if first == [(2, 3)] && second.is_empty() => Ok(()),
        Ok((first, second)) => Err(format!("page 2 was written; found {first:?}, then {second:?}")),
        Err::<_, io::Error>(error) => Err(format!("PAGEMAP_SCAN: {error}")),
    }
}

/// Writes four shared pages, clears, writes the third, and expects that one, until cleared again. A kernel without
/// CONFIG_MEM_SOFT_DIRTY takes all of this and shows no bit.
fn try_soft_dirty() -> Result<(), String> {
    let pages = OwnPages::map(MapFlags::SHARED).map_err(|error| format!("mmap: {error}"))?;
    let tried = (|| {
        let process = ProcessFiles::open("/proc/self")?;
        (0..OwnPages::COUNT).for_each(|page| pages.write(page));
        let written = || process.written(pages.start(), OwnPages::COUNT);
        let new = written()?;
        process.clear()?;
        pages.write(2);
        let one = written()?;
        process.clear()?;
        Ok([new, one, written()?])
    })();
    match tried {
        Ok([new, one, none]) if new == [0, 1, 2, 3] && one == [2] && none.is_empty() => Ok(()),
        Ok([new, one, none]) if new.is_empty() && one.is_empty() && none.is_empty() => {
            Err("the kernel has none (CONFIG_MEM_SOFT_DIRTY)".into())
        }
        Ok(other) => Err(format!("page 2 was written after all; found {other:?}")),
        Err::<_, crate::MachineError>(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            Err(format!("{error}{}", cause.unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mechanism_is_here() {
        mechanism().unwrap();
    }

    #[test]
    fn kernels_that_could_lose_a_write_are_refused() {
        let settings = |compaction: &'static str, numa: Option<&'static str>| {
            move |name: &str| match name {
                "vm/compact_unevictable_allowed" => Some(compaction.to_owned()),
                _ => numa.map(str::to_owned),
            }
        };
        assert_eq!(fit_for_soft_dirty("6.1.0-56-cloud-amd64", settings("0\n", None)), Ok(()));
        assert_eq!(fit_for_soft_dirty("6.1.0-56-cloud-amd64", settings("0\n", Some("0\n"))), Ok(()));
        assert_eq!(fit_for_soft_dirty("6.10", |_| None), Ok(()));
        let refused = |release, compaction, numa| fit_for_soft_dirty(release, settings(compaction, numa)).unwrap_err();
        assert!(refused("6.1.0", "1\n", Some("0")).contains("vm.compact_unevictable_allowed"));
        assert!(refused("6.1.0", "0\n", Some("2\n")).contains("kernel.numa_balancing"));
        assert!(refused("5.10.0-30-amd64", "0", None).contains("too old"));
        assert!(refused("", "0", None).contains("too old"));
    }
}
