//! Which regions of a block are watched page by page, and which as a whole.
//!
//! A scan looks at every page, and most pages of a guest are not written for a long time. A block is therefore divided into
//! *regions*. A **hot** region is scanned each time. A **cold** one is left out of scans: its pages are protected so that the
//! first write to each is *trapped*, which costs the guest some microseconds and tells the page. A cold region that is
//! trapped again and again becomes hot; a hot one in which nothing is written for long becomes cold. What a scan costs then
//! follows what the guest writes, not what it has.
//!
//! Here are the decisions alone; [`super::traps`] and [`super::pagemap_scan`] do what follows from them.

use std::ops::Range;

use super::page_set::PageSet;

/// Pages of a region of a block of up to 64 GiB: 2 MiB, what one page table describes.
const REGION_PAGES: u64 = 512;
/// A larger block has larger regions: the kernel keeps a record for each stretch of equal ones, and has a limit of 65,530
/// (vm.max_map_count).
const MAX_REGIONS: u64 = 32_768;
/// In so many scans was a cold region trapped when it becomes hot.
const HOT_AFTER: u8 = 3;
/// For so many scans was nothing written in a hot region when it becomes cold: a few seconds of checkpoints.
const COLD_AFTER: u32 = 100;
/// How many regions wait at most to become hot.
const RISING: usize = 64;
/// So many pages become hot in one pause, but a region at least. 512 take some 0.1 ms on a slow machine.
pub(super) const WARMED: u64 = 4096;
/// So many pages, neighbours, become cold in one pause, but a region at least.
const COOLED: u64 = 2048;

/// What is known of one region.
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    /// Cold: in how many scans it was trapped. Hot: nothing.
    heat: u8,
    /// It waits to become hot.
    rising: bool,
    /// Hot: the number of the last scan in which something was written, or in which it became hot.
    written: u32,
    /// The page behind the last one that was opened, and how many pages were: a guest that writes one page after the other
    /// is not trapped at each.
    next: u64,
    window: u64,
}

/// What a scan has to look at next, in the order of addresses.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// Pages of hot regions, to be scanned.
    Hot(Range<u64>),
    /// A cold region with trapped pages: see [`Regions::next_trapped`].
    Trapped(u64),
}

/// The regions of one block. Nothing here allocates after [`Regions::new`].
#[derive(Debug)]
pub(super) struct Regions {
    pages: u64,
    region_pages: u64,
    regions: Vec<Region>,
    /// A bit for each region.
    hot: PageSet,
    /// Cold regions with trapped pages.
    touched: PageSet,
    /// Pages of cold regions that may have been written since the last scan.
    trapped: PageSet,
    /// Regions that have been trapped often enough.
    rising: Vec<u64>,
    scans: u32,
    /// Where the search for regions that have become cold goes on.
    cursor: u64,
}

impl Regions {
    /// All regions of a block of so many pages, cold.
    pub(super) fn new(pages: u64) -> Regions {
        let region_pages = REGION_PAGES * pages.div_ceil(REGION_PAGES * MAX_REGIONS).max(1);
        let count = pages.div_ceil(region_pages);
        Regions {
            pages,
            region_pages,
            regions: vec![Region::default(); count as usize],
            hot: PageSet::empty(count),
            touched: PageSet::empty(count),
            trapped: PageSet::empty(pages),
            rising: Vec::with_capacity(RISING),
            scans: 0,
            cursor: 0,
        }
    }

    /// How many regions there are, and how many of them are hot.
    pub(super) fn count(&self) -> (u64, u64) {
        (self.regions.len() as u64, self.hot.count())
    }

    /// The pages of `region`.
    pub(super) fn pages_of(&self, region: u64) -> Range<u64> {
        region * self.region_pages..((region + 1) * self.region_pages).min(self.pages)
    }

    /// The pages from `from` on whose regions are all hot or all cold, and whether they are hot.
    pub(super) fn next_alike(&self, from: u64) -> Option<(Range<u64>, bool)> {
        if from >= self.pages {
            return None;
        }
        let region = from / self.region_pages;
        let (first, end) = self.hot.next_run(region).unwrap_or((self.regions.len() as u64, 0));
        let (end, hot) = if first == region { (end, true) } else { (first, false) };
        Some((from..(end * self.region_pages).min(self.pages), hot))
    }

    /// A write to `page` was trapped: the pages whose protection is to be taken away, at most so many; None when its region is not
    /// cold (any more).
    pub(super) fn would_open(&self, page: u64, most: u64) -> Option<Range<u64>> {
        let number = page / self.region_pages;
        if page >= self.pages || self.hot.contains(number) {
            return None;
        }
        let region = &self.regions[number as usize];
        let window = if region.window > 0 && region.next == page { region.window * 8 } else { 1 };
        Some(page..(page + window.min(most)).min(self.pages_of(number).end))
    }

    /// Their protection is being taken away: all of them count as written.
    pub(super) fn opened(&mut self, pages: &Range<u64>) {
        let number = pages.start / self.region_pages;
        let region = &mut self.regions[number as usize];
        (region.next, region.window) = (pages.end, pages.end - pages.start);
        self.trapped.insert_range(pages.start, pages.end);
        self.touched.insert(number);
    }

    /// A scan begins.
    pub(super) fn begin_scan(&mut self) {
        self.scans = self.scans.wrapping_add(1);
    }

    /// What is to be looked at, at or behind page `from`, where a region begins or the block ends.
    pub(super) fn next_segment(&self, from: u64) -> Option<Segment> {
        let region = from.div_ceil(self.region_pages);
        let hot = self.hot.next_run(region);
        let touched = self.touched.next_run(region).map(|(first, _)| first);
        match (hot, touched) {
            (Some((first, end)), touched) if touched.is_none_or(|touched| first < touched) => {
                Some(Segment::Hot(first * self.region_pages..(end * self.region_pages).min(self.pages)))
            }
            (_, Some(touched)) => Some(Segment::Trapped(touched)),
            _ => None,
        }
    }

    /// The next trapped pages of a region, at or behind page `from`.
    pub(super) fn next_trapped(&self, region: u64, from: u64) -> Option<Range<u64>> {
        let pages = self.pages_of(region);
        let (first, end) = self.trapped.next_run_before(pages.start.max(from), pages.end)?;
        Some(first..end)
    }

    /// The pages have been protected again and reported.
    pub(super) fn reported(&mut self, pages: &Range<u64>) {
        self.trapped.remove(pages.start, pages.end);
    }

    /// Hot regions, neighbours, of so many pages at most, but one at least.
    pub(super) fn next_hot(&self, most: u64) -> Option<Range<u64>> {
        let (first, end) = self.hot.next_run(0)?;
        Some(first..end.min(first + (most / self.region_pages).max(1)))
    }

    /// All trapped pages of a region have been reported.
    pub(super) fn emptied(&mut self, number: u64) {
        self.touched.remove(number, number + 1);
        let region = &mut self.regions[number as usize];
        region.window = 0;
        region.heat = region.heat.saturating_add(1);
        if region.heat >= HOT_AFTER && !region.rising && self.rising.len() < RISING {
            region.rising = true;
            self.rising.push(number);
        }
    }

    /// A scan of hot regions found these pages written.
    pub(super) fn written(&mut self, pages: Range<u64>) {
        for number in pages.start / self.region_pages..=(pages.end - 1) / self.region_pages {
            self.regions[number as usize].written = self.scans;
        }
    }

    /// The next region that is to become hot now: all its pages are clean, and nobody writes. To be told by
    /// [`Regions::warmed`] if it has.
    pub(super) fn next_rising(&mut self) -> Option<u64> {
        let number = self.rising.pop()?;
        self.regions[number as usize].rising = false;
        Some(number)
    }

    /// The region has become hot.
    pub(super) fn warmed(&mut self, number: u64) {
        self.hot.insert(number);
        self.regions[number as usize] = Region { written: self.scans, ..Region::default() };
    }

    /// Neighbouring hot regions in which nothing has been written for long, if a short search finds some. To be told by
    /// [`Regions::cooled`] if they have become cold.
    pub(super) fn next_cooling(&mut self) -> Option<Range<u64>> {
        let (first, end) = match self.hot.next_run(self.cursor) {
            Some(found) => found,
            None => self.hot.next_run(0)?,
        };
        let end = end.min(first + RISING as u64);
        let quiet = |number: &u64| self.scans.wrapping_sub(self.regions[*number as usize].written) >= COLD_AFTER;
        let Some(first) = (first..end).find(quiet) else {
            self.cursor = end;
            return None;
        };
        let most = (COOLED / self.region_pages).max(1);
        let end = (first..end.min(first + most)).take_while(quiet).last().map_or(first, |last| last + 1);
        self.cursor = end;
        Some(first..end)
    }

    /// The regions have become cold.
    pub(super) fn cooled(&mut self, numbers: Range<u64>) {
        self.hot.remove(numbers.start, numbers.end);
        for number in numbers {
            self.regions[number as usize] = Region::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Memory as the kernel keeps it: which pages are protected, and what was written since the last scan.
    struct Guest {
        regions: Regions,
        open: BTreeSet<u64>,
        written: BTreeSet<u64>,
    }

    impl Guest {
        fn new(pages: u64) -> Guest {
            Guest { regions: Regions::new(pages), open: BTreeSet::new(), written: BTreeSet::new() }
        }

        fn write(&mut self, page: u64) {
            if self.open.insert(page)
                && let Some(opened) = self.regions.would_open(page, u64::MAX)
            {
                self.regions.opened(&opened);
                assert!(opened.contains(&page));
                self.open.extend(opened);
            }
            self.written.insert(page);
        }

        /// What a scan reports, in its order.
        fn scan(&mut self, stopped: bool) -> Vec<u64> {
            let (mut found, mut at) = (Vec::new(), 0);
            self.regions.begin_scan();
            while let Some(segment) = self.regions.next_segment(at) {
                match segment {
                    Segment::Hot(pages) => {
                        at = pages.end;
                        for page in pages {
                            if self.open.remove(&page) {
                                self.regions.written(page..page + 1);
                                found.push(page);
                            }
                        }
                    }
                    Segment::Trapped(region) => {
                        at = self.regions.pages_of(region).end;
                        while let Some(pages) = self.regions.next_trapped(region, 0) {
                            self.regions.reported(&pages);
                            pages.clone().for_each(|page| assert!(self.open.remove(&page)));
                            found.extend(pages);
                        }
                        self.regions.emptied(region);
                    }
                }
            }
            if stopped {
                while let Some(region) = self.regions.next_rising() {
                    self.regions.warmed(region);
                }
                if let Some(regions) = self.regions.next_cooling() {
                    self.regions.cooled(regions);
                }
            }
            found
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Nothing that was written is missing, in order, once; and what nobody wrote is told only beside what was written
        /// one after the other.
        #[test]
        fn every_write_is_reported(
            pages in 1_u64..5_000,
            epochs in prop::collection::vec((prop::collection::vec(0_u64..5_000, 0..40), 0_u64..600, any::<bool>()), 1..30),
        ) {
            let mut guest = Guest::new(pages);
            for (writes, streak, stopped) in epochs {
                writes.iter().filter(|page| **page < pages).for_each(|page| guest.write(*page));
                (0..streak.min(pages)).for_each(|page| guest.write(page));
                let found = guest.scan(stopped);
                prop_assert!(found.windows(2).all(|w| w[0] < w[1]));
                let found: BTreeSet<u64> = found.into_iter().collect();
                prop_assert!(found.is_superset(&guest.written));
                prop_assert!(found.len() <= guest.written.len() * 9);
                prop_assert!(guest.open.is_empty());
                guest.written.clear();
            }
        }
    }

    #[test]
    fn a_region_that_is_written_often_is_scanned_until_it_is_left_alone() {
        let mut guest = Guest::new(100 * REGION_PAGES);
        for _ in 0..HOT_AFTER {
            assert_eq!(guest.regions.count(), (100, 0));
            guest.write(7 * REGION_PAGES + 3);
            assert_eq!(guest.scan(true), [7 * REGION_PAGES + 3]);
        }
        assert_eq!(guest.regions.count(), (100, 1));
        assert!(guest.regions.would_open(7 * REGION_PAGES, u64::MAX).is_none());
        for _ in 0..COLD_AFTER - 1 {
            assert!(guest.scan(true).is_empty());
        }
        guest.write(8 * REGION_PAGES - 1);
        assert_eq!(guest.scan(true), [8 * REGION_PAGES - 1]);
        for _ in 0..COLD_AFTER {
            assert_eq!(guest.regions.count(), (100, 1));
            guest.scan(true);
        }
        assert_eq!(guest.regions.count(), (100, 0));
    }

    #[test]
    fn regions_move_only_while_the_guest_stands_still() {
        let mut guest = Guest::new(10 * REGION_PAGES);
        for _ in 0..10 {
            guest.write(0);
            guest.scan(false);
        }
        assert_eq!(guest.regions.count(), (10, 0));
        guest.write(0);
        guest.scan(true);
        assert_eq!(guest.regions.count(), (10, 1));
    }

    /// A guest that fills a region is trapped a few times, one that writes here and there at each page and for no other.
    #[test]
    fn a_stream_of_writes_is_trapped_a_few_times() {
        let mut regions = Regions::new(REGION_PAGES);
        let (mut traps, mut open) = (0, 0);
        for page in 0..REGION_PAGES {
            if page >= open {
                traps += 1;
                let opened = regions.would_open(page, u64::MAX).unwrap();
                regions.opened(&opened);
                open = opened.end;
            }
        }
        assert_eq!((traps, open), (4, REGION_PAGES));
        let mut regions = Regions::new(REGION_PAGES);
        for page in (0..REGION_PAGES).step_by(7) {
            let opened = regions.would_open(page, u64::MAX).unwrap();
            regions.opened(&opened);
            assert_eq!(opened, page..page + 1);
        }
    }

    #[test]
    fn a_large_block_has_no_more_regions_than_the_kernel_has_room_for() {
        let gib = (1 << 30) / crate::blocks::PAGE_SIZE;
        for (memory, regions) in [(1, 512), (64, MAX_REGIONS), (65, 16_640), (4096, MAX_REGIONS)] {
            assert_eq!(Regions::new(memory * gib).count().0, regions);
        }
    }
}
