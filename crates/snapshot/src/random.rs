//! Numbers that nobody can guess.

use std::fs::File;
use std::io::{self, Read};

/// 128 random bits, from random(4).
pub(crate) fn u128() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}
