//! The library that is preloaded into QEMU (sources: `preload/`), and what it sends.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::error::{MachineError, Result};

/// The compiled library.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/userfaultfd.so"));

/// The library in a memfd: QEMU inherits it, and the dynamic loader opens it as `/proc/self/fd/N`, so that no file is
/// left behind.
pub(crate) fn library() -> Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(c"ninefold-preload", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(MachineError::os("memfd_create for the preloaded library"))?;
    let mut file = File::from(fd);
    file.write_all(LIBRARY).map_err(MachineError::io("writing the preloaded library"))?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(MachineError::os("sealing the preloaded library"))?;
    Ok(file.into())
}

/// What the library sent.
pub(crate) struct Received {
    /// QEMU's two userfaultfds, or why there are none.
    pub uffds: Result<[OwnedFd; 2]>,
    /// Where in QEMU the library's words for kvmclock are (`preload/kvm_clock.rs`).
    pub kvm_clock: Option<u64>,
}

/// Takes what the library has sent from process `pid`; the last message, when a wrapper script sent one before QEMU was
/// executed. To be called when QEMU has greeted: all messages are there by then.
pub(crate) fn receive(socket: &UnixStream, pid: u32) -> Result<Received> {
    let refused = |reason: String| MachineError::Userfaultfd { reason };
    let mut found = None;
    loop {
        let mut text = [0_u8; 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut text)], &mut control, flags) {
            Ok(message) if message.bytes == 0 => break,
            Ok(message) => message,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(MachineError::os("receiving the userfaultfd")(error)),
        };
        let fds = control.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => Some([fds.next()?, fds.next()?]),
            _ => None,
        });
        if message.bytes != text.len() {
            return Err(refused(format!("a message of {} bytes", message.bytes)));
        }
        let word = |at: usize| u32::from_ne_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        let (errno, sender) = (word(0).cast_signed(), word(4));
        if sender == pid {
            found = Some((errno, fds, u64::from(word(8)) | u64::from(word(12)) << 32));
        }
    }
    let kvm_clock = found.as_ref().map(|(_, _, address)| *address);
    let uffds = match found {
        Some((0, Some(fds), _)) => Ok(fds),
        Some((0, None, _)) => Err(refused("the message had no descriptors".into())),
        Some((errno, _, _)) => Err(refused(format!(
            "{} (CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd is needed)",
            std::io::Error::from_raw_os_error(errno)
        ))),
        None => Err(refused("the preloaded library did not run (is QEMU statically linked?)".into())),
    };
    Ok(Received { uffds, kvm_clock })
}

/// The environment for an inherited library. `lock`: it is to lock QEMU's memory and keep huge pages away.
pub(crate) fn environment(library: &OwnedFd, socket: &UnixStream, lock: bool) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("LD_PRELOAD", format!("/proc/self/fd/{}", library.as_raw_fd())),
        ("NINEFOLD_UFFD_SOCKET", socket.as_raw_fd().to_string()),
    ];
    if lock {
        variables.push(("NINEFOLD_LOCK_MEMORY", "1".to_owned()));
    }
    variables
}
