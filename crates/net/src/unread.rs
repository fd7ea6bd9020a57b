//! What the other end of a socket has not read yet: SIOCOUTQ, see unix(7) and ioctl_list(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Whether there is any of what was sent.
///
/// # Errors
/// Those of ioctl(2).
pub fn is_any(socket: impl AsFd) -> io::Result<bool> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as it is borrowed, and TIOCOUTQ (SIOCOUTQ is the same) writes one int.
    let rc = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes > 0) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_not_read_is_seen() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(!is_any(&ours).unwrap());
        ours.write_all(b"two").unwrap();
        assert!(is_any(&ours).unwrap());
        theirs.read_exact(&mut [0; 3]).unwrap();
        assert!(!is_any(&ours).unwrap());
    }
}
