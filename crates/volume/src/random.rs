//! Names that nobody can guess, numbers that nothing else has.

use std::fs::File;
use std::io::{self, Read};

/// 128 random bits as 32 hexadecimal digits, from random(4).
pub(crate) fn hex128() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// 64 random bits.
pub(crate) fn number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
