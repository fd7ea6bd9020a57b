//! How one page stands in a `Pages` record.
//!
//! An entry is `{page u32, encoding u8, reserved u8, length u16}` and then `length` bytes, except that for zero pages
//! `length` is the number of zero pages in a row and nothing follows.
//!
//! A **patch** (encoding delta) rebuilds a page from what the receiver already holds: the CRC-32 of the new page, a
//! mask of the 64-byte lines that changed (64 bits), and for each of them a mask of its 8-byte words (8 bits) and the
//! changed words. The checksum makes a patch of the wrong base an error instead of a silent corruption.

use super::error::StreamError;
pub use super::layout::PAGE_SIZE;

/// One page.
pub type Page = [u8; PAGE_SIZE];

/// Bytes of an entry's header.
pub(super) const ENTRY_LEN: usize = 8;
/// Longest patch that is worth sending, bytes: beyond it a page goes raw or compressed.
pub(super) const MAX_PATCH: usize = 2048;

const LINE: usize = 64;
const WORD: usize = 8;

/// How a page is written; the numbers are those on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    Zero = 0,
    Raw = 1,
    Lz4 = 2,
    Delta = 3,
}

/// The content of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageContent<'a> {
    /// This many pages of zeros.
    Zero {
        count: u16,
    },
    Raw(&'a Page),
    /// An LZ4 block (no frame) of one page.
    Lz4(&'a [u8]),
    /// A patch of the page that the receiver holds.
    Delta(&'a [u8]),
}

/// One entry of a `Pages` record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageEntry<'a> {
    /// The page, or the first of the run of zero pages.
    pub page: u32,
    pub content: PageContent<'a>,
}

/// Whether a page is all zeros. Leaves at the first 256 bytes that are not.
#[inline]
pub fn is_zero(page: &Page) -> bool {
    // Or-ing fixed chunks is what the compiler turns into vector code.
    page.chunks_exact(256).all(|chunk| {
        let mut any = 0u64;
        for word in chunk.as_chunks::<WORD>().0 {
            any |= u64::from_ne_bytes(*word);
        }
        any == 0
    })
}

/// Takes the next entry off the front of `rest`.
pub(super) fn next_entry<'a>(rest: &mut &'a [u8]) -> Result<PageEntry<'a>, StreamError> {
    let bad = |what| StreamError::Malformed { record: "Pages", what };
    let (head, tail) = rest.split_first_chunk::<ENTRY_LEN>().ok_or(bad("an entry is cut off"))?;
    let [p0, p1, p2, p3, encoding, reserved, l0, l1] = *head;
    let page = u32::from_le_bytes([p0, p1, p2, p3]);
    let length = u16::from_le_bytes([l0, l1]);
    if reserved != 0 {
        return Err(bad("a reserved field is not zero"));
    }
    if encoding == Encoding::Zero as u8 {
        if length == 0 {
            return Err(bad("an empty run of zero pages"));
        }
        *rest = tail;
        return Ok(PageEntry { page, content: PageContent::Zero { count: length } });
    }
    let (body, tail) = tail.split_at_checked(length.into()).ok_or(bad("an entry is cut off"))?;
    let content = if encoding == Encoding::Raw as u8 {
        PageContent::Raw(body.try_into().map_err(|_| bad("a raw page is not of page size"))?)
    } else if encoding == Encoding::Lz4 as u8 {
        PageContent::Lz4(body)
    } else if encoding == Encoding::Delta as u8 {
        PageContent::Delta(body)
    } else {
        return Err(bad("unknown page encoding"));
    };
    *rest = tail;
    Ok(PageEntry { page, content })
}

/// A page's content in a stream: how it is written, and its place in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub page: u32,
    /// [`Encoding::Raw`] or [`Encoding::Lz4`].
    pub encoding: Encoding,
    /// Bytes, counted from the begin of the entries.
    pub place: std::ops::Range<usize>,
}

/// Where in the entries of a `Pages` record the contents stand that need nothing else to be read: raw and compressed pages.
///
/// # Errors
/// Entries that do not follow the format.
pub fn places(entries: &[u8]) -> impl Iterator<Item = Result<Placed, StreamError>> + use<'_> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            let entry = match next_entry(&mut rest) {
                Ok(entry) => entry,
                Err(error) => {
                    rest = &[];
                    return Some(Err(error));
                }
            };
            let (encoding, length) = match entry.content {
                PageContent::Raw(page) => (Encoding::Raw, page.len()),
                PageContent::Lz4(packed) => (Encoding::Lz4, packed.len()),
                PageContent::Zero { .. } | PageContent::Delta(_) => continue,
            };
            let end = entries.len() - rest.len();
            return Some(Ok(Placed { page: entry.page, encoding, place: end - length..end }));
        }
    })
}

/// Appends an entry's header.
#[inline]
pub(super) fn push_entry(out: &mut Vec<u8>, page: u32, encoding: Encoding, length: u16) {
    let ([p0, p1, p2, p3], [l0, l1]) = (page.to_le_bytes(), length.to_le_bytes());
    out.extend_from_slice(&[p0, p1, p2, p3, encoding as u8, 0, l0, l1]);
}

/// The lines in which two pages differ, one bit each.
#[inline]
pub(super) fn changed_lines(old: &Page, new: &Page) -> u64 {
    let mut mask = 0u64;
    for (i, (a, b)) in old.as_chunks::<LINE>().0.iter().zip(new.as_chunks::<LINE>().0).enumerate() {
        let mut diff = 0u64;
        for (x, y) in a.as_chunks::<WORD>().0.iter().zip(b.as_chunks::<WORD>().0) {
            diff |= u64::from_ne_bytes(*x) ^ u64::from_ne_bytes(*y);
        }
        mask |= u64::from(diff != 0) << i;
    }
    mask
}

/// Appends the patch that makes `new` of `old`, whose changed lines are `lines`. Leaves `out` alone and answers false if
/// it would be longer than [`MAX_PATCH`].
pub(super) fn push_patch(out: &mut Vec<u8>, old: &Page, new: &Page, lines: u64) -> bool {
    let start = out.len();
    out.extend_from_slice(&crc32fast::hash(new).to_le_bytes());
    out.extend_from_slice(&lines.to_le_bytes());
    let (old, new) = (old.as_chunks::<LINE>().0, new.as_chunks::<LINE>().0);
    let mut left = lines;
    while left != 0 {
        let i = left.trailing_zeros() as usize;
        left &= left - 1;
        // The most that a line takes: checked before, so that the buffer never grows past its capacity.
        if out.len() - start + 1 + LINE > MAX_PATCH {
            out.truncate(start);
            return false;
        }
        let at = out.len();
        out.push(0);
        let mut words = 0u8;
        for (w, (x, y)) in old[i].as_chunks::<WORD>().0.iter().zip(new[i].as_chunks::<WORD>().0).enumerate() {
            if x != y {
                words |= 1 << w;
                out.extend_from_slice(y);
            }
        }
        out[at] = words;
    }
    true
}

/// Applies a patch to `page`, which holds the previous content. On an error `page` is spoilt.
pub(super) fn apply_patch(patch: &[u8], page: &mut Page) -> Result<(), &'static str> {
    const CUT: &str = "a patch is cut off";
    let (crc, rest) = patch.split_first_chunk::<4>().ok_or(CUT)?;
    let (lines, mut rest) = rest.split_first_chunk::<8>().ok_or(CUT)?;
    let mut left = u64::from_le_bytes(*lines);
    let target = page.as_chunks_mut::<LINE>().0;
    while left != 0 {
        let i = left.trailing_zeros() as usize;
        left &= left - 1;
        let (&words, mut tail) = rest.split_first().ok_or(CUT)?;
        for (w, slot) in target[i].as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
            if words & (1 << w) != 0 {
                let (word, after) = tail.split_first_chunk::<WORD>().ok_or(CUT)?;
                *slot = *word;
                tail = after;
            }
        }
        rest = tail;
    }
    if !rest.is_empty() {
        return Err("a patch is too long");
    }
    if crc32fast::hash(page).to_le_bytes() != *crc {
        return Err("a patch does not fit what is held here");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zero_pages_are_seen_and_others_are_not() {
        let mut page = [0; PAGE_SIZE];
        assert!(is_zero(&page));
        for at in [0, 1, 255, 256, 2047, PAGE_SIZE - 1] {
            page[at] = 1;
            assert!(!is_zero(&page), "byte {at}");
            page[at] = 0;
        }
    }

    proptest! {
        #[test]
        fn a_patch_rebuilds_the_page(seed in any::<u8>(), changes in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..300)) {
            let old: Page = std::array::from_fn(|i| (i as u8).wrapping_mul(seed));
            let mut new = old;
            for (at, byte) in changes {
                new[at] = byte;
            }
            let mut patch = Vec::new();
            if push_patch(&mut patch, &old, &new, changed_lines(&old, &new)) {
                prop_assert!(patch.len() <= MAX_PATCH);
                let mut page = old;
                apply_patch(&patch, &mut page).unwrap();
                prop_assert!(page == new);
                // The same patch on another base is refused.
                let mut other = old;
                other.iter_mut().for_each(|b| *b = !*b);
                prop_assert!(apply_patch(&patch, &mut other).is_err());
            } else {
                prop_assert!(patch.is_empty());
            }
        }
    }
}
