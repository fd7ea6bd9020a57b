//! Options of every socket here.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Room for half a checkpoint, so that sender and receiver need not run in step.
const BUFFER: usize = 4 << 20;

/// A new TCP socket for `addr` with large buffers. They are set before the handshake because the window scale is agreed
/// on there (RFC 7323, section 2).
pub(crate) fn new(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Needs CAP_NET_ADMIN. Without it the kernel's own tuning is better than the small size that it would allow, so
    // nothing is set then.
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_ok() {
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, BUFFER);
    }
    Ok(socket)
}

/// What a connected socket gets: no Nagle delay, and keep-alive probes so that a peer that vanished while nothing was
/// being sent is noticed (after 25 s) instead of never. And a congestion control that sends a checkpoint at once: one
/// that paces (BBR) takes the bursts for the link's rate and spreads each of them over the epoch.
pub(crate) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    // Neither may be allowed here; the machine's own choice serves then.
    let _ = sockopt::set_tcp_congestion(socket, "cubic").or_else(|_| sockopt::set_tcp_congestion(socket, "reno"));
    let probes =
        TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5)).with_retries(3);
    SockRef::from(socket).set_tcp_keepalive(&probes)
}
