//! One page or block as it is stored.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};
use ninefold_replica::stream::page::Encoding;
use ninefold_volume::checksums;

use super::SUM;

/// Stores a block: compressed if that saves an eighth.
pub(super) fn pack<'a>(content: &'a [u8], scratch: &'a mut Vec<u8>) -> (Encoding, &'a [u8]) {
    scratch.resize(get_maximum_output_size(content.len()), 0);
    match compress_into(content, scratch) {
        Ok(length) if length <= content.len() / 8 * 7 => (Encoding::Lz4, &scratch[..length]),
        _ => (Encoding::Raw, content),
    }
}

/// Reads a content back, and checks it.
pub(super) fn unpack(encoding: Encoding, stored: &[u8], sum: &[u8; SUM], into: &mut [u8]) -> Result<(), &'static str> {
    match encoding {
        Encoding::Raw if stored.len() == into.len() => into.copy_from_slice(stored),
        Encoding::Lz4 if decompress_into(stored, into).is_ok_and(|length| length == into.len()) => {}
        _ => return Err("cannot be unpacked"),
    }
    if checksums::sum(into) == *sum { Ok(()) } else { Err("has another checksum") }
}
