//! The hello: the first words on a connection, in each direction.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `NFLD` |
//! | 1 | version of the transport, 1 |
//! | 1 | length of the host name, 1 to 32 |
//! | n | host name |
//!
//! The connecting side speaks first. A side that sees another version refuses, naming both: there is one so far.

use std::io::{self, Read, Write};

use ninefold_model::HostName;
use ninefold_model::name::MAX_NAME;

const MAGIC: [u8; 4] = *b"NFLD";
const VERSION: u8 = 1;

pub(crate) fn send(to: &mut impl Write, host: &HostName) -> io::Result<()> {
    let name = host.as_str().as_bytes();
    let mut bytes = Vec::with_capacity(6 + name.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(VERSION);
    // A host name has at most 32 bytes.
    bytes.push(name.len() as u8);
    bytes.extend_from_slice(name);
    to.write_all(&bytes)?;
    to.flush()
}

/// Reads a hello and nothing beyond it. What is not one is answered with `InvalidData`.
pub(crate) fn receive(from: &mut impl Read) -> io::Result<HostName> {
    let refuse = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut magic = [0; 4];
    from.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(refuse(format!("it begins with {magic:02x?}")));
    }
    let mut head = [0; 2];
    from.read_exact(&mut head)?;
    let [version, length] = head;
    if version != VERSION {
        return Err(refuse(format!("it speaks version {version}, this host {VERSION}")));
    }
    let length = usize::from(length);
    let mut name = [0; MAX_NAME];
    let name = name.get_mut(..length).ok_or_else(|| refuse(format!("a host name of {length} bytes")))?;
    from.read_exact(name)?;
    let text = std::str::from_utf8(name).map_err(|_| refuse("a host name that is not text".into()))?;
    text.parse().map_err(|e: ninefold_model::InvalidName| refuse(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_comes_back() {
        let host: HostName = "host-a".parse().unwrap();
        let mut wire = Vec::new();
        send(&mut wire, &host).unwrap();
        wire.extend_from_slice(b"rest");
        let mut reader = &wire[..];
        assert_eq!(receive(&mut reader).unwrap(), host);
        assert_eq!(reader, b"rest");
    }

    #[test]
    fn what_is_no_hello_is_refused() {
        for (wire, word) in [
            (&b"GET / HTTP/1.1\r\n"[..], "begins with"),
            (b"NFLD\x02\x01a", "version 2"),
            (b"NFLD\x01\x00", "not a name"),
            (b"NFLD\x01\x21aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "33 bytes"),
            (b"NFLD\x01\x02\xff\xfe", "not text"),
            (b"NFLD\x01\x02..", "not a name"),
        ] {
            let error = receive(&mut &wire[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(receive(&mut &b"NFLD\x01"[..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
