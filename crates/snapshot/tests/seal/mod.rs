//! Makes a snapshot file that was changed look as if it had been written so: what a hostile author can do, too.

use ring::digest::{Context, SHA256, digest};

const PREAMBLE: usize = 16;
const HEADER: usize = 12;
/// Of a record of a pass, what stands before its bytes; the channel in it.
const PART: usize = 32;
const CHANNEL_AT: usize = 17;
/// The end's payload, and the root in it.
const END: usize = 80;
const ROOT: usize = 32;

const PAGES: u8 = 6;
const DEVICE_STATE: u8 = 7;
const CHANNEL_OUTPUT: u8 = 8;
const END_OF_PASS: u8 = 9;
const INDEX: u8 = 36;

/// The kind of the record at `at` and where its payload is.
fn record(file: &[u8], at: usize) -> Option<(u8, std::ops::Range<usize>)> {
    let header: &[u8; HEADER] = file.get(at..)?.first_chunk()?;
    let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    let start = at + HEADER;
    file.get(start..start.checked_add(length)?)?;
    Some((header[0], start..start + length))
}

/// Puts the checksum of every record right that can be found from the front.
fn checksums(file: &mut [u8]) {
    let mut at = PREAMBLE;
    while let Some((_, payload)) = record(file, at) {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&file[at..at + 8]);
        crc.update(&file[payload.clone()]);
        file[at + 8..at + HEADER].copy_from_slice(&crc.finalize().to_le_bytes());
        at = payload.end;
    }
}

/// The root of what is in the file, as `docs/snapshots.md` says.
fn root(file: &[u8]) -> Option<[u8; ROOT]> {
    let mut root = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        root.update(&(bytes.len() as u64).to_le_bytes());
        root.update(bytes);
    };
    let (_, hello) = record(file, PREAMBLE)?;
    let (_, head) = record(file, hello.end)?;
    part(&file[..head.end]);

    let end = file.len().checked_sub(END)?;
    let mut at = usize::try_from(u64::from_le_bytes(*file[end..].first_chunk()?)).ok()?;
    let (mut state, mut output) = (Vec::new(), vec![Vec::new(); 256]);
    loop {
        let (kind, payload) = record(file, at)?;
        at = payload.end;
        let payload = &file[payload];
        match kind {
            DEVICE_STATE => state.extend_from_slice(payload.get(PART..)?),
            CHANNEL_OUTPUT => output[usize::from(*payload.get(CHANNEL_AT)?)].extend_from_slice(payload.get(PART..)?),
            PAGES | END_OF_PASS => break,
            _ => {}
        }
    }
    part(digest(&SHA256, &state).as_ref());
    let said = output.iter().rposition(|o| !o.is_empty()).map_or(0, |last| last + 1);
    output[..said].iter().for_each(|output| part(digest(&SHA256, output).as_ref()));

    let mut at = PREAMBLE;
    while let Some((kind, payload)) = record(file, at) {
        at = payload.end;
        if kind == INDEX {
            part(&file[payload]);
        }
    }
    root.finish().as_ref().try_into().ok()
}

/// Puts right all checksums and the root, as far as the file can be understood.
pub fn seal(file: &mut [u8]) {
    checksums(file);
    if let Some(root) = root(file) {
        let at = file.len() - ROOT;
        file[at..].copy_from_slice(&root);
        checksums(file);
    }
}
