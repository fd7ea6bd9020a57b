//! Which bytes of an image were written past its log and may not be on the disk.
//!
//! After a flush that failed the kernel may take for written what is not (fsync(2)): the next flush succeeds, a read finds in the
//! cache what was written, and the disk has something else. So what such a flush was to make durable is **lost** until it has been
//! written again and a flush has succeeded that began after that. Only who wrote it knows what that was: a cache proves nothing.
//!
//! ```text
//!   begin ──► pending ──done──► pending, whole ──flush──► (durable: not lost any more)
//!                                              └─failed─► lost
//! ```
//!
//! Of an image that has [structures](crate::image::Image::has_structures) an earlier process may have lost some: that the volume's
//! bytes are written again does not mend those. In the process that saw the flush fail QEMU knows itself what it may not believe.

use crate::ranges::Ranges;

/// See the [module](self). Bounded: what it knows is rounded to the safe side.
#[derive(Debug)]
pub struct Unsynced {
    /// The image's size, bytes: what is behind its end nobody could write again.
    size: u64,
    /// Written, or perhaps, since the last flush began.
    pending: Ranges,
    /// Written for certain since then.
    whole: Ranges,
    /// What both were when the flush that is under way began.
    flushing: (Ranges, Ranges),
    lost: Ranges,
    failures: u64,
    /// Writes that have begun and are not done, and those of them that were under way when a flush failed.
    open: u64,
    open_at_failure: u64,
    /// That something is written again is not enough.
    for_good: bool,
}

/// A write that has begun.
#[derive(Debug)]
#[must_use]
pub struct Begun {
    start: u64,
    end: u64,
    failures: u64,
}

impl Unsynced {
    /// For an image of `size` bytes of which all is on the disk.
    fn nothing(size: u64) -> Self {
        let none = Ranges::default;
        Self {
            size,
            pending: none(),
            whole: none(),
            flushing: (none(), none()),
            lost: none(),
            failures: 0,
            open: 0,
            open_at_failure: 0,
            for_good: false,
        }
    }

    /// For an image of `size` bytes of which nobody knows what an earlier process has left in the cache.
    pub fn unknown(size: u64) -> Self {
        let mut this = Self::nothing(size);
        this.pending.put(0, size);
        this
    }

    /// For an image of `size` bytes in which an earlier process has lost something, nobody knows where; `for_good` if it may be
    /// something else than the volume's bytes.
    pub fn lost(size: u64, for_good: bool) -> Self {
        let mut this = Self { for_good, ..Self::unknown(size) };
        this.lost.put(0, size);
        this
    }

    /// Bytes from `start` to the one before `end` are about to be written.
    pub fn begin(&mut self, start: u64, end: u64) -> Begun {
        self.pending.put(start, end);
        self.pending.widen(self.size);
        self.open += 1;
        Begun { start, end, failures: self.failures }
    }

    /// They have been, all of them if `whole`.
    pub fn done(&mut self, begun: &Begun, whole: bool) {
        let Begun { start, end, failures } = *begun;
        self.open = self.open.saturating_sub(1);
        if failures != self.failures {
            self.open_at_failure = self.open_at_failure.saturating_sub(1);
            // A flush has failed meanwhile, and may have taken this with it.
            self.lost.put(start, end);
            self.lost.widen(self.size);
        }
        self.pending.put(start, end);
        self.pending.widen(self.size);
        if whole && failures == self.failures {
            self.whole.put(start, end);
            self.whole.narrow();
        } else {
            self.whole.remove(start, end);
        }
    }

    /// A flush begins. One at a time.
    pub fn flush_begins(&mut self) {
        self.flushing = (std::mem::take(&mut self.pending), std::mem::take(&mut self.whole));
    }

    /// The flush that had begun has succeeded.
    pub fn flushed(&mut self) {
        let (_, whole) = std::mem::take(&mut self.flushing);
        if !self.for_good {
            self.lost.remove_all(&whole);
            self.lost.widen(self.size);
        }
    }

    /// The flush that had begun has failed.
    pub fn flush_failed(&mut self) {
        let (pending, _) = std::mem::take(&mut self.flushing);
        self.lost.put_all(&pending);
        // What came while it was under way may have gone with it.
        self.lost.put_all(&self.pending);
        self.lost.widen(self.size);
        self.whole = Ranges::default();
        self.failures += 1;
        self.open_at_failure = self.open;
    }

    /// Whether a flush has something to do, or one that is under way has not yet done it.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty() || !self.flushing.0.is_empty()
    }

    /// Whether something is lost: a flush that succeeds is not enough then.
    pub fn is_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Whether the flush that has begun would lose something if it failed now.
    pub fn is_at_stake(&self) -> bool {
        self.open > 0 || !self.pending.is_empty() || !self.flushing.0.is_empty()
    }

    /// Whether nothing is lost, nor can be before another flush fails.
    pub fn is_safe(&self) -> bool {
        self.lost.is_empty() && self.open_at_failure == 0
    }

    /// Whether something of these bytes is lost.
    pub fn is_lost_in(&self, start: u64, end: u64) -> bool {
        self.lost.touches(start, end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ranges::MOST;

    const SIZE: usize = 48;

    /// What a kernel does, at its worst: a failed flush takes everything that is dirty for written.
    #[derive(Default)]
    struct Kernel {
        cache: Vec<u64>,
        dirty: Vec<bool>,
        disk: Vec<u64>,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write {
            start: usize,
            end: usize,
            whole: bool,
        },
        /// A flush; of the steps behind it so many happen while it is under way.
        Flush {
            good: bool,
            during: usize,
        },
        /// A write begins, and is done after so many steps.
        Slow {
            start: usize,
            end: usize,
            steps: usize,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..SIZE, 1..12usize).prop_map(|(start, length)| (start, (start + length).min(SIZE)));
        prop_oneof![
            6 => (range(), prop::bool::weighted(0.9)).prop_map(|((start, end), whole)| Step::Write { start, end, whole }),
            4 => (any::<bool>(), 0..3usize).prop_map(|(good, during)| Step::Flush { good, during }),
            2 => (range(), 1..4usize).prop_map(|((start, end), steps)| Step::Slow { start, end, steps }),
        ]
    }

    proptest! {
        /// Whatever happens: when nothing is lost and nothing pending, the disk has what was written.
        #[test]
        fn what_is_not_lost_is_on_the_disk(steps in prop::collection::vec(step(), 0..60)) {
            let mut kernel = Kernel { cache: vec![0; SIZE], dirty: vec![false; SIZE], disk: vec![0; SIZE] };
            let mut known = Unsynced::nothing(SIZE as u64);
            let mut slow: Vec<(usize, Begun)> = Vec::new();
            let mut flush: Option<(usize, bool)> = None;
            for (n, step) in (1u64..).zip(steps) {
                let (safe, failures) = (known.is_safe(), known.failures);
                let write = |kernel: &mut Kernel, start: usize, end: usize| {
                    kernel.cache[start..end].fill(n);
                    kernel.dirty[start..end].fill(true);
                };
                match step {
                    Step::Write { start, end, whole } => {
                        let begun = known.begin(start as u64, end as u64);
                        // The rest of one that failed is as it was.
                        write(&mut kernel, start, if whole { end } else { start + (end - start) / 2 });
                        known.done(&begun, whole);
                    }
                    Step::Slow { start, end, steps } => {
                        slow.push((steps, known.begin(start as u64, end as u64)));
                        write(&mut kernel, start, end);
                    }
                    Step::Flush { good, during } if flush.is_none() => {
                        known.flush_begins();
                        flush = Some((during, good));
                    }
                    Step::Flush { .. } => {}
                }
                for (left, _) in &mut slow {
                    *left -= 1;
                }
                for (_, begun) in slow.extract_if(.., |(left, _)| *left == 0) {
                    known.done(&begun, true);
                }
                flush = match flush {
                    Some((0, good)) => {
                        for at in 0..SIZE {
                            if good && kernel.dirty[at] {
                                kernel.disk[at] = kernel.cache[at];
                            }
                        }
                        kernel.dirty.fill(false);
                        if good { known.flushed() } else { known.flush_failed() }
                        None
                    }
                    Some((left, good)) => Some((left - 1, good)),
                    None => None,
                };
                prop_assert!(!known.is_lost() || !safe || known.failures > failures, "lost without a flush that failed");
                for at in 0..SIZE {
                    let unsure = known.pending.touches(at as u64, at as u64 + 1)
                        || known.flushing.0.touches(at as u64, at as u64 + 1)
                        || known.is_lost_in(at as u64, at as u64 + 1);
                    prop_assert!(unsure || kernel.disk[at] == kernel.cache[at], "byte {}", at);
                }
                let sure = !known.is_pending() && !known.is_lost();
                prop_assert!(!sure || kernel.disk == kernel.cache, "also while a flush is under way");
            }
        }
    }

    #[test]
    fn what_is_lost_is_lost_until_it_is_written_again_and_flushed() {
        let mut known = Unsynced::nothing(1 << 20);
        let write = |known: &mut Unsynced, start, end| {
            let begun = known.begin(start, end);
            known.done(&begun, true);
        };
        let flush = |known: &mut Unsynced, good| {
            known.flush_begins();
            if good { known.flushed() } else { known.flush_failed() }
        };
        write(&mut known, 0, 100);
        assert!(known.is_pending() && !known.is_lost());
        flush(&mut known, false);
        flush(&mut known, true);
        assert!(known.is_lost() && known.is_lost_in(99, 100) && !known.is_lost_in(100, 200));
        write(&mut known, 0, 60);
        flush(&mut known, true);
        assert!(!known.is_lost_in(0, 60) && known.is_lost_in(59, 61));
        write(&mut known, 60, 200);
        assert!(known.is_lost());
        flush(&mut known, true);
        assert!(!known.is_lost() && !known.is_pending());
    }

    #[test]
    fn what_an_earlier_process_lost_is_all_of_it() {
        let mut known = Unsynced::lost(200, false);
        known.flush_begins();
        known.flushed();
        assert!(known.is_lost_in(0, 1) && known.is_lost_in(199, 200) && !known.is_safe());
        let begun = known.begin(0, 200);
        known.done(&begun, true);
        known.flush_begins();
        known.flushed();
        assert!(!known.is_lost() && known.is_safe());
    }

    /// The structures that lead to what was written may be lost, too.
    #[test]
    fn what_lies_in_structures_cannot_be_written_again() {
        let mut known = Unsynced::lost(200, true);
        let begun = known.begin(0, 200);
        known.done(&begun, true);
        known.flush_begins();
        known.flushed();
        assert!(known.is_lost());
    }

    #[test]
    fn it_is_bounded() {
        // Where the rounding would go past the end.
        let size = 200_000 * 1024 - 512;
        let mut known = Unsynced::nothing(size);
        for n in 0..200_000u64 {
            let begun = known.begin(n * 1024, n * 1024 + 512);
            known.done(&begun, true);
        }
        assert!(known.pending.len() <= MOST && known.whole.len() <= MOST);
        known.flush_begins();
        known.flush_failed();
        assert!(known.lost.len() <= MOST);
        assert!((0..200_000u64).all(|n| known.is_lost_in(n * 1024, n * 1024 + 1)), "more rather than less");
        assert!(!known.is_lost_in(size, 1 << 41), "nobody could write that again");
    }
}
