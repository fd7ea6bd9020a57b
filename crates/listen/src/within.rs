//! Reading and writing before a deadline, however slowly the bytes come: a time-out for each system call bounds nothing when
//! a peer sends a byte at a time.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A socket whose reads and writes can be timed.
pub trait Timed {
    /// See [`TcpStream::set_read_timeout`].
    ///
    /// # Errors
    /// The time is zero, or the kernel refuses it.
    fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()>;
    /// See [`TcpStream::set_write_timeout`].
    ///
    /// # Errors
    /// The time is zero, or the kernel refuses it.
    fn set_write_timeout(&self, time: Option<Duration>) -> io::Result<()>;
}

impl Timed for TcpStream {
    fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        TcpStream::set_read_timeout(self, time)
    }
    fn set_write_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        TcpStream::set_write_timeout(self, time)
    }
}

impl Timed for UnixStream {
    fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        UnixStream::set_read_timeout(self, time)
    }
    fn set_write_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        UnixStream::set_write_timeout(self, time)
    }
}

/// A socket with a deadline for all that is read and written, and a budget for what is read. Past the deadline it answers
/// `TimedOut`, past the budget `InvalidData`. It leaves its last time-outs on the socket.
#[derive(Debug)]
pub struct Within<'a, S> {
    socket: &'a S,
    deadline: Instant,
    budget: usize,
}

impl<'a, S> Within<'a, S> {
    /// At most `budget` bytes are read.
    pub fn new(socket: &'a S, deadline: Instant, budget: usize) -> Self {
        Self { socket, deadline, budget }
    }

    /// When it ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Another deadline from here on.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// What a socket's own time-out is called.
fn late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl<S: Timed> Read for Within<'_, S>
where
    for<'s> &'s S: Read,
{
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.budget == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it sent more than it may"));
        }
        let n = buf.len().min(self.budget);
        self.socket.set_read_timeout(self.left()?)?;
        let mut socket = self.socket;
        let n = socket.read(&mut buf[..n]).map_err(late)?;
        self.budget -= n;
        Ok(n)
    }
}

impl<S: Timed> Write for Within<'_, S>
where
    for<'s> &'s S: Write,
{
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        let mut socket = self.socket;
        socket.write(buf).map_err(late)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_at_a_time_is_late_all_the_same() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let trickle = std::thread::spawn(move || {
            // Ends when the other side is gone; each byte is in time for a time-out of one call.
            while (&theirs).write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut within = Within::new(&ours, Instant::now() + Duration::from_millis(100), usize::MAX);
        let error = within.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(ours);
        trickle.join().unwrap();
    }

    #[test]
    fn who_does_not_read_is_late() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut within = Within::new(&ours, Instant::now() + Duration::from_millis(50), 0);
        let error = within.write_all(&vec![0; 16 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_budget_bounds_what_is_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(b"123456").unwrap();
        let mut within = Within::new(&ours, Instant::now() + Duration::from_secs(20), 4);
        let mut said = Vec::new();
        assert_eq!(within.read_to_end(&mut said).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(said, b"1234");
    }
}
