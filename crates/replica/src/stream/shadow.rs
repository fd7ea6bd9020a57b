//! What the receiver is known to hold, so that only changes need to be sent.

use super::layout::Layout;
use super::page::{PAGE_SIZE, Page};

/// Pages in one piece of shadow memory (64 KiB): pieces are allocated when a page of theirs is first kept, so that a
/// shadow costs memory only for what the guest writes.
const PIECE_PAGES: usize = 16;

/// Copies of pages as they were last sent in this session.
///
/// A page is either *known* (the copy equals what the receiver holds once it has applied everything sent before) or
/// not. Whatever could make a copy stale makes it unknown; an unknown page is sent whole.
#[derive(Debug)]
pub struct Shadow {
    blocks: Vec<Vec<Option<Piece>>>,
    pieces: usize,
    pieces_left: usize,
    /// Pages for which there was no room since the last time that all was given up.
    turned_away: usize,
}

#[derive(Debug)]
struct Piece {
    bytes: Box<[u8]>,
    known: [u64; PIECE_PAGES.div_ceil(64)],
}

/// What the shadow has of a page.
#[derive(Debug)]
pub(super) enum Slot<'a> {
    /// The content that the receiver holds.
    Known(&'a mut Page),
    /// Nothing, but there is room: fill it with what is being sent. It is marked as known already.
    Fresh(&'a mut Page),
    /// Nothing, and no room.
    Absent,
}

impl Shadow {
    /// An empty shadow that may take up to `max_bytes` of memory; beyond that, pages simply stay unknown.
    pub fn new(layout: &Layout, max_bytes: u64) -> Self {
        let pieces = |pages: u64| usize::try_from(pages.div_ceil(PIECE_PAGES as u64)).unwrap_or(usize::MAX);
        let blocks = (0u16..)
            .map_while(|b| layout.pages(b))
            .map(|pages| std::iter::repeat_with(|| None).take(pieces(pages)).collect())
            .collect();
        let pieces_left = usize::try_from(max_bytes / (PIECE_PAGES * PAGE_SIZE) as u64).unwrap_or(usize::MAX);
        Self { blocks, pieces: pieces_left, pieces_left, turned_away: 0 }
    }

    /// Forgets every page: a new session, or one that failed. Keeps the memory.
    pub fn clear(&mut self) {
        for piece in self.blocks.iter_mut().flatten().flatten() {
            piece.known = [0; PIECE_PAGES.div_ceil(64)];
        }
    }

    /// Gives up all pieces if more pages have been turned away than there is room for: what the guest writes often has
    /// moved elsewhere. To be called between passes.
    pub(super) fn make_room(&mut self) {
        if self.turned_away > self.pieces * PIECE_PAGES {
            self.blocks.iter_mut().flatten().for_each(|piece| *piece = None);
            self.pieces_left = self.pieces;
            self.turned_away = 0;
        }
    }

    /// Forgets one page: it is sent in a way that does not update its copy.
    #[inline]
    pub(super) fn forget(&mut self, block: u16, page: u64) {
        let Some(pieces) = self.blocks.get_mut(usize::from(block)) else {
            return;
        };
        let (piece, at) = (page as usize / PIECE_PAGES, page as usize % PIECE_PAGES);
        if let Some(Some(piece)) = pieces.get_mut(piece) {
            piece.known[at / 64] &= !(1 << (at % 64));
        }
    }

    #[inline]
    pub(super) fn slot(&mut self, block: u16, page: u64) -> Slot<'_> {
        let (piece, at) = (page as usize / PIECE_PAGES, page as usize % PIECE_PAGES);
        let Some(place) = self.blocks.get_mut(usize::from(block)).and_then(|b| b.get_mut(piece)) else {
            return Slot::Absent;
        };
        if place.is_none() {
            let Some(left) = self.pieces_left.checked_sub(1) else {
                self.turned_away += 1;
                return Slot::Absent;
            };
            self.pieces_left = left;
            *place = Some(Piece {
                bytes: vec![0; PIECE_PAGES * PAGE_SIZE].into_boxed_slice(),
                known: [0; PIECE_PAGES.div_ceil(64)],
            });
        }
        let Some(piece) = place else {
            return Slot::Absent;
        };
        let Some(page) = piece.bytes.as_chunks_mut::<PAGE_SIZE>().0.get_mut(at) else {
            return Slot::Absent;
        };
        let (word, bit) = (&mut piece.known[at / 64], 1 << (at % 64));
        if *word & bit != 0 {
            Slot::Known(page)
        } else {
            *word |= bit;
            Slot::Fresh(page)
        }
    }
}
