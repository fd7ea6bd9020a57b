//! As much of redis's protocol (RESP 2, <https://redis.io/docs/latest/develop/reference/protocol-spec/>) as the ledger
//! needs.

use std::io::BufRead;

use crate::error::{LabError, io_at};

/// Longest line or string accepted, bytes.
const MAX: usize = 1 << 16;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    /// `None` stands for RESP's null.
    Bulk(Option<Vec<u8>>),
}

/// Appends a command.
pub fn command(into: &mut Vec<u8>, words: &[&str]) {
    into.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        into.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
}

/// Reads one answer.
///
/// # Errors
/// The stream ends (`UnexpectedEof`) or breaks, or what comes is not RESP or is longer than 64 KiB.
pub fn read(from: &mut impl BufRead) -> Result<Reply, LabError> {
    let line = line(from)?;
    let bad = || LabError::Resp(line.chars().take(40).collect());
    let rest = line.get(1..).ok_or_else(bad)?;
    match line.as_bytes()[0] {
        b'+' => Ok(Reply::Simple(rest.to_owned())),
        b'-' => Ok(Reply::Error(rest.to_owned())),
        b':' => rest.parse().map(Reply::Integer).map_err(|_| bad()),
        b'$' if rest == "-1" => Ok(Reply::Bulk(None)),
        b'$' => {
            let length: usize = rest.parse().ok().filter(|n| *n <= MAX).ok_or_else(bad)?;
            let mut text = vec![0; length + 2];
            from.read_exact(&mut text).map_err(io_at("read an answer"))?;
            text.truncate(length);
            Ok(Reply::Bulk(Some(text)))
        }
        _ => Err(bad()),
    }
}

fn line(from: &mut impl BufRead) -> Result<String, LabError> {
    let mut line = Vec::new();
    let mut limited = std::io::Read::take(&mut *from, MAX as u64);
    limited.read_until(b'\n', &mut line).map_err(io_at("read an answer"))?;
    if line.pop() != Some(b'\n') {
        return Err(io_at("read an answer")(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
    }
    line.pop();
    match String::from_utf8(line) {
        Ok(line) if !line.is_empty() => Ok(line),
        _ => Err(LabError::Resp("a line that is no text".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let mut from = &b"+OK\r\n:12\r\n$3\r\nabc\r\n$-1\r\n-ERR no\r\n$99999999\r\n"[..];
        assert_eq!(read(&mut from).unwrap(), Reply::Simple("OK".into()));
        assert_eq!(read(&mut from).unwrap(), Reply::Integer(12));
        assert_eq!(read(&mut from).unwrap(), Reply::Bulk(Some(b"abc".to_vec())));
        assert_eq!(read(&mut from).unwrap(), Reply::Bulk(None));
        assert_eq!(read(&mut from).unwrap(), Reply::Error("ERR no".into()));
        assert!(matches!(read(&mut from), Err(LabError::Resp(_))));
        assert!(matches!(read(&mut &b"\r\n"[..]), Err(LabError::Resp(_))));
        assert!(matches!(read(&mut &b":1"[..]), Err(LabError::Io { .. })));
    }
}
