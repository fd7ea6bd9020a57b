//! Guest memory: a memfd that the keeper maps and QEMU inherits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::blocks::PAGE_SIZE;
use crate::dirty::{Mechanism, host};
use crate::error::{MachineError, Result};

/// The host pages that back guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageSize {
    /// 4 KiB.
    #[default]
    Small,
    /// 2 MiB, from the host's hugetlb pool. Dirty pages are then found, and copied, 2 MiB at a time.
    Huge,
}

impl PageSize {
    /// Bytes.
    pub fn bytes(self) -> u64 {
        match self {
            PageSize::Small => PAGE_SIZE,
            PageSize::Huge => 2 << 20,
        }
    }
}

/// Nobody can change its size, nor allow that.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// A VM's memory, zero when created. It outlives QEMU processes: the memory goes when the last holder does.
#[derive(Debug)]
pub struct Ram {
    fd: OwnedFd,
    base: NonNull<u8>,
    bytes: u64,
    page_size: PageSize,
}

// SAFETY: `base` is a shared mapping that lives as long as the value, and it is only accessed through raw copies
// that make no assumption about who else writes.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Creates `bytes` (a multiple of 4 KiB) of memory. It is sealed: neither QEMU nor anyone else can change its size.
    ///
    /// # Errors
    /// `Io` when the host has not the memory, address space or huge pages.
    pub fn create(bytes: u64) -> Result<Ram> {
        Self::create_with(bytes, PageSize::Small)
    }

    /// As [`Ram::create`], with a choice of page size (memfd_create(2), MFD_HUGETLB).
    ///
    /// # Errors
    /// As [`Ram::create`].
    pub fn create_with(bytes: u64, page_size: PageSize) -> Result<Ram> {
        let refused = || MachineError::Io {
            what: "memory size",
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("{bytes} bytes")),
        };
        if bytes == 0 || !bytes.is_multiple_of(page_size.bytes()) {
            return Err(refused());
        }
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        if page_size == PageSize::Huge {
            flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        }
        let fd = rustix::fs::memfd_create(c"ninefold-ram", flags)
            .map_err(MachineError::os("memfd_create for guest memory"))?;
        rustix::fs::ftruncate(&fd, bytes).map_err(MachineError::os("ftruncate of guest memory"))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(MachineError::os("sealing guest memory"))?;
        Self::map(fd, bytes, page_size)
    }

    /// Takes memory that [`Ram::create`] has made, perhaps in another process, with what is in it.
    ///
    /// # Errors
    /// `Io` when it is no such memory, or has not this many bytes.
    pub fn adopt(fd: OwnedFd, bytes: u64) -> Result<Ram> {
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(MachineError::os("adopting guest memory"))?;
        let size = rustix::fs::fstat(&fd).map_err(MachineError::os("adopting guest memory"))?.st_size;
        if !seals.contains(SEALS) || u64::try_from(size) != Ok(bytes) {
            let source =
                std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("{size} bytes, sealed {seals:?}"));
            return Err(MachineError::Io { what: "adopting guest memory", source });
        }
        Self::map(fd, bytes, PageSize::Small)
    }

    fn map(fd: OwnedFd, bytes: u64, page_size: PageSize) -> Result<Ram> {
        let length = usize::try_from(bytes).map_err(|_| MachineError::Io {
            what: "memory size",
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("{bytes} bytes")),
        })?;
        // Huge pages are reserved by mmap, so that a shortage is an error here and no SIGBUS later.
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
        }
        .map_err(MachineError::os("mmap of guest memory"))?;
        let base = NonNull::new(base.cast()).ok_or(MachineError::Order { call: "mmap", reason: "null mapping" })?;
        let ram = Ram { fd, base, bytes, page_size };
        // A keeper that fails ends by SIGABRT, and its end must not wait until gigabytes are in a core dump: while they are written
        // its connections stay open and its QEMU lives. Nor is the guest's memory for whoever may read such a file.
        // SAFETY: the mapping made above; its contents stay as they are.
        unsafe { rustix::mm::madvise(ram.base.as_ptr().cast(), length, Advice::LinuxDontDump) }
            .map_err(MachineError::os("madvise of guest memory"))?;
        if page_size == PageSize::Small && host::mechanism() == Ok(Mechanism::SoftDirty) {
            // Where the kernel joins pages of a file to a huge one, every mapping of it loses its soft-dirty bits. QEMU's
            // mapping refuses that, and so must this one.
            // SAFETY: the mapping made above; its contents stay as they are.
            let refused = unsafe { rustix::mm::madvise(ram.base.as_ptr().cast(), length, Advice::LinuxNoHugepage) };
            match refused {
                // A kernel without transparent huge pages.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(MachineError::os("madvise of guest memory")(error)),
            }
        }
        Ok(ram)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The pages that back it.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Copies from guest memory. The guest may write meanwhile: such a page is torn, and found dirty by the next scan.
    ///
    /// # Panics
    /// When the range is not inside the memory; [`crate::Memory`] checks before.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) {
        assert!(offset.checked_add(out.len() as u64).is_some_and(|end| end <= self.bytes));
        // SAFETY: the range is inside the mapping; `out` is ordinary memory of this process, so they cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.base.as_ptr().add(offset as usize), out.as_mut_ptr(), out.len()) }
    }

    /// Copies into guest memory.
    ///
    /// # Panics
    /// As [`Ram::read`].
    pub(crate) fn write(&self, offset: u64, from: &[u8]) {
        assert!(offset.checked_add(from.len() as u64).is_some_and(|end| end <= self.bytes));
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr().add(offset as usize), from.len()) }
    }
}

impl AsFd for Ram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `create_with`; nothing refers to it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes as usize) } {
            tracing::warn!(%error, "munmap of guest memory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_in_no_core_dump() {
        let ram = Ram::create(1 << 20).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // `dd`: proc_pid_smaps(5).
        let mapping = maps.split(&format!("{:x}-", ram.base.as_ptr() as usize)).nth(1).unwrap();
        let flags = mapping.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }
}
