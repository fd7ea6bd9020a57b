//! Random numbers, for what nothing else may be called.

use std::fs::File;
use std::io::{self, Read};

use ninefold_model::VmId;

/// 128 random bits, from random(4).
///
/// # Errors
/// Those of the file system.
pub(crate) fn bits() -> io::Result<u128> {
    let mut bits = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bits)?;
    Ok(u128::from_le_bytes(bits))
}

/// The id of a VM that nobody has made yet.
///
/// # Errors
/// Those of random(4).
pub fn new_vm_id() -> io::Result<VmId> {
    bits().map(VmId::random)
}
