//! An image behind another server's export.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::proto::{
    self, Command, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, InfoRequest, MAX_PAYLOAD, OptionHead, OptionReplyHead,
    ProtoError, Request, SimpleReply, command_flag, errno, field, info, option, reply, transmission,
};
use crate::error::VolumeError;
use crate::image::{Image, check_bounds};

/// The most that one request makes zero, bytes. Without data a request could say more; this keeps each one short.
const ZERO_STEP: u64 = 1 << 30;
/// Replies to one option that are taken before its end.
const MAX_REPLIES: u32 = 64;

/// A client of one export. Calls from several threads are carried out one after another: each holds the connection until
/// its reply is there.
///
/// After the first failure of the connection every call fails at once; there is no reconnecting, because what the
/// server held unflushed may be lost with it.
#[derive(Debug)]
pub struct Client {
    size: u64,
    flags: u16,
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    cookie: u64,
    broken: bool,
}

impl Client {
    /// Connects to the server at `path` and asks for `export`.
    ///
    /// # Errors
    /// `Io`, `Nbd`, `NbdRefused`.
    pub fn connect(path: &Path, export: &str) -> Result<Client, VolumeError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| VolumeError::Io { what: "cannot reach the NBD server", source })?;
        Client::start(stream, export)
    }

    /// The same on a connection that is there.
    ///
    /// # Errors
    /// `Io`, `Nbd`, `NbdRefused`.
    pub fn start(mut stream: UnixStream, export: &str) -> Result<Client, VolumeError> {
        let (size, flags) = negotiate(&mut stream, export)?;
        Ok(Client { size, flags, connection: Mutex::new(Connection { stream, cookie: 0, broken: false }) })
    }

    /// Whether the server takes no writes.
    pub fn read_only(&self) -> bool {
        self.flags & transmission::READ_ONLY != 0
    }

    fn call(
        &self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
        into: &mut [u8],
    ) -> Result<(), VolumeError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.broken {
            return Err(VolumeError::Io { what: "the NBD server is gone", source: io::ErrorKind::NotConnected.into() });
        }
        let cookie = connection.cookie;
        connection.cookie = cookie.wrapping_add(1);
        let request = Request { flags, command, cookie, offset, length };
        // Until the reply is read the connection is out of step.
        connection.broken = true;
        let error = exchange(&mut connection.stream, &request, data, into)?;
        connection.broken = false;
        match error {
            0 => Ok(()),
            error => Err(VolumeError::Io { what: "the NBD server refused a request", source: to_io(error) }),
        }
    }
}

impl Image for Client {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        check_bounds(at, into.len() as u64, self.size)?;
        let mut at = at;
        for part in into.chunks_mut(MAX_PAYLOAD as usize) {
            self.call(Command::Read, 0, at, part.len() as u32, &[], part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        check_bounds(at, bytes.len() as u64, self.size)?;
        let mut at = at;
        for part in bytes.chunks(MAX_PAYLOAD as usize) {
            self.call(Command::Write, 0, at, part.len() as u32, part, &mut [])?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn zero(&self, at: u64, length: u64, unmap: bool) -> Result<(), VolumeError> {
        check_bounds(at, length, self.size)?;
        let by_command = self.flags & transmission::SEND_WRITE_ZEROES != 0;
        let step = if by_command { ZERO_STEP } else { 1 << 20 };
        let zeros = if by_command { Vec::new() } else { vec![0; length.min(step) as usize] };
        let (mut at, mut left) = (at, length);
        while left > 0 {
            let count = left.min(step);
            if by_command {
                let flags = if unmap { 0 } else { command_flag::NO_HOLE };
                self.call(Command::WriteZeroes, flags, at, count as u32, &[], &mut [])?;
            } else {
                self.call(Command::Write, 0, at, count as u32, &zeros[..count as usize], &mut [])?;
            }
            at += count;
            left -= count;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        if self.flags & transmission::SEND_FLUSH == 0 {
            // The server's writes are durable when they are answered ("NBD_FLAG_SEND_FLUSH").
            return Ok(());
        }
        self.call(Command::Flush, 0, 0, 0, &[], &mut [])
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let connection = self.connection.get_mut().unwrap_or_else(PoisonError::into_inner);
        let bye = Request { flags: 0, command: Command::Disconnect, cookie: connection.cookie, offset: 0, length: 0 };
        if !connection.broken {
            let _ = connection.stream.write_all(&bye.emit());
        }
    }
}

/// Sends a request and takes its reply; the reply's error value.
fn exchange(stream: &mut UnixStream, request: &Request, data: &[u8], into: &mut [u8]) -> Result<u32, VolumeError> {
    let lost = |source| VolumeError::Io { what: "the connection to the NBD server is lost", source };
    let head = request.emit();
    write_both(stream, &head, data).map_err(lost)?;
    let mut reply = [0; SimpleReply::LEN];
    stream.read_exact(&mut reply).map_err(lost)?;
    let reply = SimpleReply::parse(&reply)?;
    if reply.cookie != request.cookie {
        return Err(ProtoError::Magic { what: "the cookie of the request", found: reply.cookie }.into());
    }
    if reply.error == 0 {
        stream.read_exact(into).map_err(lost)?;
    }
    Ok(reply.error)
}

fn write_both(stream: &mut UnixStream, head: &[u8], data: &[u8]) -> io::Result<()> {
    let mut parts = [IoSlice::new(head), IoSlice::new(data)];
    let mut parts = &mut parts[..];
    let mut left = head.len() + data.len();
    while left > 0 {
        match stream.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                left -= count;
                IoSlice::advance_slices(&mut parts, count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The haggling; the export's size and transmission flags.
fn negotiate(stream: &mut UnixStream, export: &str) -> Result<(u64, u16), VolumeError> {
    let lost = |source| VolumeError::Io { what: "the NBD server went away while it was asked", source };
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).map_err(lost)?;
    for (at, magic) in [(0, proto::GREETING_MAGIC), (8, proto::OPTION_MAGIC)] {
        let found = u64::from_be_bytes(field(&greeting, at));
        if found != magic {
            return Err(ProtoError::Magic { what: "an NBD server", found }.into());
        }
    }
    let offered = u16::from_be_bytes(field(&greeting, 16));
    if offered & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(ProtoError::Lacks("fixed newstyle negotiation").into());
    }
    let mut out = u32::from(FLAG_FIXED_NEWSTYLE | (offered & FLAG_NO_ZEROES)).to_be_bytes().to_vec();
    // Block sizes are not asked for: a server must then take any offset and length ("Block size constraints").
    let data = InfoRequest { name: export.to_owned(), wanted: Vec::new() }.emit();
    out.extend(OptionHead { option: option::GO, length: data.len() as u32 }.emit());
    out.extend(data);
    stream.write_all(&out).map_err(lost)?;
    let mut found = None;
    for _ in 0..MAX_REPLIES {
        let mut head = [0; OptionReplyHead::LEN];
        stream.read_exact(&mut head).map_err(lost)?;
        let head = OptionReplyHead::parse(&head)?;
        let mut data = vec![0; head.length as usize];
        stream.read_exact(&mut data).map_err(lost)?;
        match head.kind {
            reply::ACK => return found.ok_or(ProtoError::Lacks("the size of its export").into()),
            reply::INFO if data.len() >= 2 && u16::from_be_bytes(field(&data, 0)) == info::EXPORT => {
                if data.len() != 12 {
                    return Err(ProtoError::Length("the description of the export").into());
                }
                found = Some((u64::from_be_bytes(field(&data, 2)), u16::from_be_bytes(field(&data, 10))));
            }
            kind if kind & reply::ERROR != 0 => {
                let why = String::from_utf8_lossy(&data).into_owned();
                return Err(VolumeError::NbdRefused { export: export.to_owned(), why });
            }
            _ => {}
        }
    }
    Err(ProtoError::Lacks("an end to its replies").into())
}

fn to_io(error: u32) -> io::Error {
    match error {
        // The protocol's values are Linux's for these.
        errno::PERM | errno::IO | errno::NOMEM | errno::INVAL | errno::NOSPC | errno::SHUTDOWN => {
            io::Error::from_raw_os_error(error as i32)
        }
        other => io::Error::other(format!("NBD error {other}")),
    }
}
