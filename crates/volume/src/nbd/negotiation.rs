//! The server's side of the haggling ("Handshake phase"), without I/O.

use super::proto::{
    self, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, InfoRequest, MAX_PAYLOAD, OptionReplyHead, ProtoError, info, option,
    reply, transmission,
};

/// Options that one client may send before it has to come to the point.
const MAX_OPTIONS: u32 = 64;

/// What clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    ReadWrite,
    /// Read only: changes are answered with `EPERM`.
    ReadOnly,
}

/// What is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name. A client that asks for the default export (an empty name) gets it too.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What clients may do.
    pub access: Access,
}

impl Export {
    fn flags(&self) -> u16 {
        use transmission::{HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES};
        match self.access {
            Access::ReadWrite => HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES,
            Access::ReadOnly => HAS_FLAGS | READ_ONLY | SEND_FLUSH,
        }
    }
}

/// What follows an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Another option.
    Haggle,
    /// Transmission: the reply must have been sent first.
    Transmit,
    /// The connection is closed once the reply is sent.
    Close,
}

/// The haggling with one client.
#[derive(Debug)]
pub struct Negotiation {
    export: Export,
    no_zeroes: bool,
    options: u32,
}

impl Negotiation {
    /// With a client that has said nothing yet.
    pub fn new(export: Export) -> Negotiation {
        Negotiation { export, no_zeroes: false, options: 0 }
    }

    /// What the server says first.
    pub fn greeting() -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[0..8].copy_from_slice(&proto::GREETING_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
        bytes[16..18].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        bytes
    }

    /// Takes the client's flags.
    ///
    /// # Errors
    /// `Lacks` if it does not speak fixed newstyle, or sets a flag that was not offered.
    pub fn client_flags(&mut self, bytes: [u8; 4]) -> Result<(), ProtoError> {
        let flags = u32::from_be_bytes(bytes);
        if flags & u32::from(FLAG_FIXED_NEWSTYLE) == 0 || flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0
        {
            return Err(ProtoError::Lacks("fixed newstyle negotiation alone"));
        }
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        Ok(())
    }

    /// Whether this option, if it is good, begins the transmission.
    pub fn begins(&self, number: u32, data: &[u8]) -> bool {
        match number {
            option::EXPORT_NAME => std::str::from_utf8(data).is_ok_and(|name| self.is_ours(name)),
            option::GO => InfoRequest::parse(data).is_ok_and(|request| self.is_ours(&request.name)),
            _ => false,
        }
    }

    /// Answers an option. With `busy` the export is taken by another client, and whoever wants to begin is told so.
    /// The reply is appended to `out`.
    pub fn answer(&mut self, number: u32, data: &[u8], busy: bool, out: &mut Vec<u8>) -> Step {
        self.options += 1;
        if self.options > MAX_OPTIONS {
            refuse(out, number, reply::ERR_TOO_BIG, "too many options");
            return Step::Close;
        }
        match number {
            option::ABORT => {
                put(out, number, reply::ACK, &[]);
                Step::Close
            }
            option::EXPORT_NAME => {
                // This option has no way to say no but to close.
                if busy || !self.begins(number, data) {
                    return Step::Close;
                }
                out.extend(self.export.size.to_be_bytes());
                out.extend(self.export.flags().to_be_bytes());
                if !self.no_zeroes {
                    out.extend([0; 124]);
                }
                Step::Transmit
            }
            option::LIST => {
                if data.is_empty() {
                    let name = self.export.name.as_bytes();
                    let mut entry = (name.len() as u32).to_be_bytes().to_vec();
                    entry.extend(name);
                    put(out, number, reply::SERVER, &entry);
                    put(out, number, reply::ACK, &[]);
                } else {
                    refuse(out, number, reply::ERR_INVALID, "LIST carries no data");
                }
                Step::Haggle
            }
            option::INFO | option::GO => match InfoRequest::parse(data) {
                Err(_) => {
                    refuse(out, number, reply::ERR_INVALID, "malformed");
                    Step::Haggle
                }
                Ok(request) if !self.is_ours(&request.name) => {
                    refuse(out, number, reply::ERR_UNKNOWN, "no such export");
                    Step::Haggle
                }
                Ok(_) if busy && number == option::GO => {
                    refuse(out, number, reply::ERR_POLICY, "another client uses the export");
                    Step::Haggle
                }
                Ok(_) => {
                    self.describe(number, out);
                    if number == option::GO { Step::Transmit } else { Step::Haggle }
                }
            },
            _ => {
                refuse(out, number, reply::ERR_UNSUP, "not spoken here");
                Step::Haggle
            }
        }
    }

    fn is_ours(&self, name: &str) -> bool {
        name.is_empty() || name == self.export.name
    }

    fn describe(&self, number: u32, out: &mut Vec<u8>) {
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend(self.export.size.to_be_bytes());
        export.extend(self.export.flags().to_be_bytes());
        put(out, number, reply::INFO, &export);
        let mut blocks = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1, 4096, MAX_PAYLOAD] {
            blocks.extend(size.to_be_bytes());
        }
        put(out, number, reply::INFO, &blocks);
        put(out, number, reply::ACK, &[]);
    }
}

fn put(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(OptionReplyHead { option, kind, length: data.len() as u32 }.emit());
    out.extend(data);
}

fn refuse(out: &mut Vec<u8>, option: u32, kind: u32, why: &str) {
    put(out, option, kind, why.as_bytes());
}
