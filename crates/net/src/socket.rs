//! The sockets between a keeper and its QEMU.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

/// Bytes that may be under way in each direction. The kernel bounds it by `net.core.wmem_max`, unless forced.
const BUFFER: usize = 4 << 20;

/// A connected pair of Unix stream sockets for `-netdev stream` or `-chardev socket`: the first is for QEMU, the second
/// for a port or channel. Both are close-on-exec. Their buffers are made as large as the system allows, so that a burst
/// of the guest does not have to wait for the keeper's thread.
///
/// # Errors
/// No more descriptors.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (qemu, ours) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for end in [&qemu, &ours] {
        // A smaller buffer costs speed, nothing else.
        if sockopt::set_socket_send_buffer_size_force(end, BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(end, BUFFER);
        }
    }
    Ok((qemu, ours))
}
