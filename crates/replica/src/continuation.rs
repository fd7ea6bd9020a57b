//! What a backup that did not take over has to be sent by the host that did.
//!
//! All backups of a primary hold checkpoints of the same [`Reign`], though not necessarily the same one when the primary is
//! lost. The host that takes over goes on from the one it holds, and from then on follows what its guest writes. Another
//! backup keeps the memory of its own. What differs between the two is
//!
//! ```text
//!   the survivor is behind:  held ────────► origin ───────────────► now
//!                                 pages of      pages that the
//!                                 these epochs  guest has written since
//!
//!   it is ahead:             origin ───────► held        (epochs that nobody goes on from)
//!                                  pages of these epochs: the survivor names them
//! ```
//!
//! so both remember what the last few epochs have changed: their [`History`]. The same goes for the blocks of volumes.

use std::collections::VecDeque;

use ninefold_model::Epoch;

use crate::pacing::MAX_IN_FLIGHT;
use crate::stream::origin::{MAX_BASE_RUNS, RUN_BYTES};
use crate::stream::{Layout, Origin, PageRun, Reign, StreamError};

/// Epochs that are remembered. Two backups are seldom more than a few apart: so many checkpoints may be unacknowledged. But
/// the primary goes on with the others while it waits for the witness to release one that it has lost.
const DEPTH: usize = 32;
/// Checkpoints that a backup may hold beyond the last of which the primary has heard: those that may be unacknowledged, and a
/// switchover's last.
const AHEAD: u64 = MAX_IN_FLIGHT as u64 + 1;
/// Runs of pages and blocks that are remembered, of all epochs together: 1 MiB.
const MAX_RUNS: usize = 1 << 16;

impl Origin {
    /// Of a primary that goes on in its own reign: a backup that has acknowledged `acked` may come back with that, or with a
    /// later one whose acknowledgement has not come. The primary knows what has changed since `acked`, whichever of them it
    /// is. `newest` is the newest that the backup has acknowledged or that was its first in a session.
    pub fn acknowledged(reign: Reign, acked: Epoch, newest: Epoch) -> Self {
        Self { reign, epoch: Epoch(newest.max(acked).0.saturating_add(AHEAD)), since: acked }
    }

    /// At such a primary: where a backup's memory and volumes may differ beside what has changed since.
    ///
    /// # Errors
    /// A backup that holds what it cannot have.
    pub fn difference(&self, base: Base) -> Result<Changes, String> {
        if (self.since..=self.epoch).contains(&base.epoch) {
            Ok(base.changes)
        } else {
            Err(format!("the backup holds epoch {}, it had acknowledged {}", base.epoch, self.since))
        }
    }
}

/// The oldest checkpoint that a backup may hold that has acknowledged this one, after its `first`: it acknowledges before all of the
/// checkpoint is in its memory, and may be killed in between. What it holds is the one before then, but for pages that this one
/// has.
pub fn may_hold(first: Epoch, acked: Epoch) -> Epoch {
    Epoch(acked.0.saturating_sub(1)).max(first)
}

/// What some epochs have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub pages: Vec<PageRun>,
    /// Of volumes: a run's `block` is the number of the volume, its pages are blocks of 64 KiB.
    pub volumes: Vec<PageRun>,
}

impl Changes {
    fn runs(&self) -> usize {
        self.pages.len() + self.volumes.len()
    }

    fn clear(&mut self) {
        self.pages.clear();
        self.volumes.clear();
    }
}

/// What a backup still has of the reign that the primary's memory has come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub epoch: Epoch,
    /// By the epochs that came after the primary's [`Origin`]. Empty for a backup that is behind it.
    pub changes: Changes,
    /// The volumes are those of no checkpoint: they have to be compared.
    pub volumes_in_doubt: bool,
}

/// Stands behind the runs of a `Base` whose volumes are in doubt: none has no blocks.
const IN_DOUBT: PageRun = PageRun { block: 0, first: 0, count: 0 };

impl Base {
    fn new(epoch: Epoch, changes: Changes) -> Self {
        Self { epoch, changes, volumes_in_doubt: false }
    }

    /// Appends the changes as they stand in a `Base` record: how many runs of pages there are u64; those, then those of
    /// volumes: first page u64, pages u32, block u16, reserved u16.
    pub fn put_changes(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.changes.pages.len() as u64).to_le_bytes());
        let doubt = self.volumes_in_doubt.then_some(&IN_DOUBT);
        for run in self.changes.pages.iter().chain(&self.changes.volumes).chain(doubt) {
            out.extend_from_slice(&run.first.to_le_bytes());
            out.extend_from_slice(&run.count.to_le_bytes());
            out.extend_from_slice(&run.block.to_le_bytes());
            out.extend_from_slice(&[0; 2]);
        }
    }

    /// Reads the changes of a `Base` record. `volumes` are the volumes' sizes in blocks of 64 KiB.
    ///
    /// # Errors
    /// Runs that are not whole, too many of them, pages and blocks that are not there.
    pub fn parse(epoch: Epoch, bytes: &[u8], layout: &Layout, volumes: &[u64]) -> Result<Self, StreamError> {
        let bad = |what| StreamError::Malformed { record: "Base", what };
        let (pages, bytes) = bytes.split_first_chunk().ok_or_else(|| bad("it is too short"))?;
        let pages = usize::try_from(u64::from_le_bytes(*pages)).unwrap_or(usize::MAX);
        let (chunks, rest) = bytes.as_chunks::<RUN_BYTES>();
        if !rest.is_empty() {
            return Err(bad("a run is cut"));
        }
        if chunks.len() > MAX_BASE_RUNS {
            return Err(bad("too many runs"));
        }
        let (of_memory, of_volumes) = chunks.split_at_checked(pages).ok_or_else(|| bad("runs are missing"))?;
        let run =
            |size: &dyn Fn(u16) -> Option<u64>,
             &[f0, f1, f2, f3, f4, f5, f6, f7, c0, c1, c2, c3, b0, b1, r0, r1]: &[u8; RUN_BYTES]| {
                let run = PageRun {
                    first: u64::from_le_bytes([f0, f1, f2, f3, f4, f5, f6, f7]),
                    count: u32::from_le_bytes([c0, c1, c2, c3]),
                    block: u16::from_le_bytes([b0, b1]),
                };
                let pages = size(run.block).ok_or_else(|| bad("there is no such block"))?;
                let within = run.first.checked_add(run.count.into()).is_some_and(|end| end <= pages);
                if within && [r0, r1] == [0; 2] { Ok(run) } else { Err(bad("a run is not within its block")) }
            };
        let all = |chunks: &[[u8; RUN_BYTES]], size: &dyn Fn(u16) -> Option<u64>| {
            chunks.iter().map(|chunk| run(size, chunk)).collect::<Result<Vec<_>, _>>()
        };
        let pages = all(of_memory, &|block| layout.pages(block))?;
        let (of_volumes, volumes_in_doubt) = match of_volumes {
            [rest @ .., [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] => (rest, true),
            all => (all, false),
        };
        let volumes = all(of_volumes, &|volume| volumes.get(usize::from(volume)).copied())?;
        if pages.iter().chain(&volumes).any(|run| run.count == 0) {
            return Err(bad("a run is empty"));
        }
        Ok(Self { epoch, changes: Changes { pages, volumes }, volumes_in_doubt })
    }
}

/// What the last few checkpoints of a reign have changed. Its size is bounded.
#[derive(Debug, Clone)]
pub struct History {
    reign: Reign,
    /// Memory holds this checkpoint.
    last: Epoch,
    /// Oldest first, the last of them is that of `last`.
    epochs: VecDeque<Changes>,
}

impl History {
    /// Of a backup whose first checkpoint is this. What it held before is not known.
    pub fn begin(reign: Reign, first: Epoch) -> Self {
        Self { reign, last: first, epochs: VecDeque::with_capacity(DEPTH) }
    }

    /// The newest checkpoint.
    pub fn last(&self) -> Epoch {
        self.last
    }

    /// Another checkpoint has been put into memory and volumes. One that does not follow, or is scattered over too many
    /// runs, is where the history begins anew.
    pub fn record(
        &mut self,
        epoch: Epoch,
        pages: impl Iterator<Item = PageRun>,
        volumes: impl Iterator<Item = PageRun>,
    ) {
        let mut kept = if self.epochs.len() == DEPTH { self.epochs.pop_front() } else { None }.unwrap_or_default();
        kept.clear();
        kept.pages.extend(pages.take(MAX_RUNS + 1));
        kept.volumes.extend(volumes.take(MAX_RUNS + 1));
        if epoch != self.last.next() || kept.runs() > MAX_RUNS {
            self.epochs.clear();
        } else {
            self.epochs.push_back(kept);
            while self.epochs.iter().map(Changes::runs).sum::<usize>() > MAX_RUNS {
                self.epochs.pop_front();
            }
        }
        self.last = epoch;
    }

    /// It is known which pages have changed since this epoch.
    fn since(&self) -> Epoch {
        Epoch(self.last.0 - self.epochs.len() as u64)
    }

    /// What a primary that goes on from the last checkpoint tells its backups.
    pub fn origin(&self) -> Origin {
        Origin { reign: self.reign, epoch: self.last, since: self.since() }
    }

    /// What a backup that holds the last checkpoint answers to a primary of this origin; nothing when its memory is of no
    /// use to that.
    pub fn base(&self, origin: &Origin) -> Option<Base> {
        if self.reign != origin.reign {
            return None;
        }
        if self.last <= origin.epoch {
            return (self.last >= origin.since).then(|| Base::new(self.last, Changes::default()));
        }
        let changes = (origin.epoch >= self.since()).then(|| self.after(origin.epoch))?;
        (changes.runs() <= MAX_BASE_RUNS).then(|| Base::new(self.last, changes))
    }

    /// At a primary that goes on from the last checkpoint: where a backup's memory and volumes differ from that checkpoint,
    /// or may do so. All that the guest has written since comes to it.
    ///
    /// # Errors
    /// A backup that is too far behind.
    pub fn difference(&self, base: Base) -> Result<Changes, String> {
        if base.epoch > self.last {
            Ok(base.changes)
        } else if base.epoch >= self.since() {
            // A backup that is behind may be missing more than the epochs in between had.
            let Changes { pages, volumes } = self.after(base.epoch);
            let and = |ours: Vec<_>, theirs: Vec<_>| merged(ours.into_iter().chain(theirs).collect());
            Ok(Changes { pages: and(pages, base.changes.pages), volumes: and(volumes, base.changes.volumes) })
        } else {
            Err(format!("the backup holds epoch {}, what changed is known since {}", base.epoch, self.since()))
        }
    }

    /// What all epochs after this one have changed, in order and each page once.
    fn after(&self, epoch: Epoch) -> Changes {
        let known = (self.last.0.saturating_sub(epoch.0) as usize).min(self.epochs.len());
        let epochs = || self.epochs.iter().skip(self.epochs.len() - known);
        let pages = merged(epochs().flat_map(|c| &c.pages).copied().collect());
        let volumes = merged(epochs().flat_map(|c| &c.volumes).copied().collect());
        Changes { pages, volumes }
    }
}

/// The same pages, in order and each once.
fn merged(mut runs: Vec<PageRun>) -> Vec<PageRun> {
    runs.sort_unstable_by_key(|r| (r.block, r.first));
    let mut out: Vec<PageRun> = Vec::with_capacity(runs.len());
    for run in runs {
        let end = run.first + u64::from(run.count);
        match out.last_mut() {
            Some(last) if last.block == run.block && run.first <= last.first + u64::from(last.count) => {
                let whole = end.max(last.first + u64::from(last.count)) - last.first;
                match u32::try_from(whole) {
                    Ok(count) => last.count = count,
                    Err(_) => out.push(run),
                }
            }
            _ => out.push(run),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use ninefold_model::Term;

    use super::*;
    use crate::stream::{BlockInfo, PAGE_SIZE};

    const PAGES: usize = 40;
    /// Blocks of each volume.
    const VOLUMES: [u64; 1] = [PAGES as u64];
    const REIGN: Reign = Reign { term: Term(4), generation: 1 };

    fn layout() -> Layout {
        let block = |name: &str, pages: usize| {
            let bytes = (pages * PAGE_SIZE) as u64;
            BlockInfo { name: name.into(), used: bytes, total: bytes }
        };
        Layout::new(vec![block("ram", PAGES), block("rom", 3)]).unwrap()
    }

    fn runs_of(pages: &[usize]) -> Vec<PageRun> {
        pages.iter().map(|p| PageRun { block: 0, first: *p as u64, count: 1 }).collect()
    }

    fn pages_of(runs: &[PageRun]) -> Vec<usize> {
        runs.iter().flat_map(|r| (r.first..r.first + u64::from(r.count)).map(|p| p as usize)).collect()
    }

    /// A backup: its memory, and what it remembers.
    #[derive(Clone)]
    struct Holder {
        memory: [u32; PAGES],
        history: Option<History>,
    }

    impl Holder {
        /// The sender leaves out what this backup has already.
        fn hold(&mut self, epoch: u64, primary: &[u32; PAGES], written: &[usize], omits: bool) {
            let sent: Vec<usize> =
                written.iter().copied().filter(|p| !omits || self.memory[*p] != primary[*p]).collect();
            sent.iter().for_each(|p| self.memory[*p] = primary[*p]);
            match &mut self.history {
                None => self.history = Some(History::begin(REIGN, Epoch(epoch))),
                Some(history) => {
                    // A volume that looks like memory, so that its blocks differ where pages do.
                    history.record(Epoch(epoch), runs_of(&sent).into_iter(), runs_of(&sent).into_iter());
                }
            }
        }
    }

    proptest! {
        /// However far the two are apart, what is sent makes the survivor equal; a survivor that is too far away is told so.
        #[test]
        fn a_survivor_becomes_equal(
            epochs in prop::collection::vec(prop::collection::vec((0..PAGES, 0u32..4), 0..12), 1..50),
            first in (0usize..6, 0usize..6),
            missed in (prop_oneof![0usize..4, 0usize..48], prop_oneof![0usize..4, 0usize..48]),
            since in prop::collection::vec((0..PAGES, 0u32..4), 0..12),
            omits in any::<bool>(),
        ) {
            let mut primary = [0; PAGES];
            let mut winner = Holder { memory: primary, history: None };
            let mut other = winner.clone();
            for (n, writes) in epochs.iter().enumerate() {
                writes.iter().for_each(|(page, value)| primary[*page] = *value);
                let written: Vec<usize> = writes.iter().map(|(page, _)| *page).collect();
                let all: Vec<usize> = (0..PAGES).collect();
                for (holder, first, missed, omits) in
                    [(&mut winner, first.0, missed.0, omits), (&mut other, first.1, missed.1, false)]
                {
                    if n >= first && n + missed < epochs.len() {
                        // The first carries whatever is missing.
                        let pages = if n == first { &all } else { &written };
                        holder.hold(n as u64 + 1, &primary, pages, omits);
                    }
                }
            }
            let (Some(mine), Some(theirs)) = (winner.history, other.history) else { return Ok(()) };
            // The guest goes on at the winner, which follows its writes.
            let mut now = winner.memory;
            since.iter().for_each(|(page, value)| now[*page] = *value);
            let origin = mine.origin();
            let Some(base) = theirs.base(&origin) else {
                let apart = mine.last().0.abs_diff(theirs.last().0) as usize;
                let known = |h: &History| h.epochs.len();
                let deep = if theirs.last() > mine.last() { known(&theirs) } else { known(&mine) };
                prop_assert!(apart > deep, "epochs {} and {}", mine.last(), theirs.last());
                return Ok(());
            };
            let mut wire = Vec::new();
            base.put_changes(&mut wire);
            let read = Base::parse(base.epoch, &wire, &layout(), &VOLUMES).unwrap();
            prop_assert_eq!(&read, &base);
            let differs = mine.difference(read).unwrap();
            prop_assert_eq!(&differs.pages, &differs.volumes);
            let mut sent = pages_of(&differs.pages);
            let distinct = sent.windows(2).all(|w| w[0] < w[1]);
            prop_assert!(distinct, "each page once: {:?}", sent);
            sent.extend(since.iter().map(|(page, _)| *page));
            sent.iter().for_each(|p| other.memory[*p] = now[*p]);
            prop_assert_eq!(other.memory, now);
        }

        /// A backup that comes back to the primary that it had is sent what was written since what that knows it to hold, and
        /// becomes equal whether it holds that or more.
        #[test]
        fn a_backup_that_comes_back_becomes_equal(
            epochs in prop::collection::vec(prop::collection::vec((0..PAGES, 0u32..4), 0..12), 1..50),
            first in 0usize..6,
            unheard in 0u64..=AHEAD,
            missed in 0usize..20,
            since in prop::collection::vec((0..PAGES, 0u32..4), 0..12),
            again in any::<bool>(),
        ) {
            let mut primary = [0; PAGES];
            let mut backup = Holder { memory: primary, history: None };
            let all: Vec<usize> = (0..PAGES).collect();
            let last = epochs.len().saturating_sub(missed) as u64;
            let acked = last.saturating_sub(unheard).max(first as u64 + 1);
            let mut written = Vec::new();
            for (n, writes) in epochs.iter().enumerate() {
                let epoch = n as u64 + 1;
                writes.iter().for_each(|(page, value)| primary[*page] = *value);
                let pages: Vec<usize> = writes.iter().map(|(page, _)| *page).collect();
                if epoch > acked {
                    written.extend(pages.clone());
                }
                if n >= first && epoch <= last {
                    backup.hold(epoch, &primary, if n == first { &all } else { &pages }, true);
                }
            }
            // The first of a session that ended before it was acknowledged: the primary's own count goes on.
            let mut newest = acked;
            if again && backup.history.is_some() {
                newest = epochs.len() as u64 + 1;
                backup.history = None;
                backup.hold(newest, &primary, &all, false);
            }
            let Some(history) = backup.history else { return Ok(()) };
            since.iter().for_each(|(page, value)| primary[*page] = *value);
            let origin = Origin::acknowledged(REIGN, Epoch(acked), Epoch(newest));
            let base = history.base(&origin).unwrap();
            prop_assert_eq!(&base, &Base::new(history.last(), Changes::default()));
            let differs = origin.difference(base).unwrap();
            let sent = written.into_iter().chain(since.iter().map(|(page, _)| *page)).chain(pages_of(&differs.pages));
            sent.for_each(|page| backup.memory[page] = primary[page]);
            prop_assert_eq!(backup.memory, primary);
            // Another life of the guest, on the same host too, has never been there.
            for other in [Reign { term: Term(5), ..REIGN }, Reign { generation: 2, ..REIGN }] {
                prop_assert_eq!(history.base(&Origin::acknowledged(other, Epoch(acked), Epoch(newest))), None);
            }
        }

        /// A backup whose keeper is killed while it puts a checkpoint into memory, which it has acknowledged: its memory is the one
        /// before and a part of that.
        #[test]
        fn a_backup_that_was_killed_half_way_becomes_equal(
            epochs in prop::collection::vec(prop::collection::vec((0..PAGES, 0u32..4), 0..12), 2..30),
            held in 1usize..28,
            part in prop::collection::vec(any::<bool>(), PAGES),
            heard in any::<bool>(),
            on in any::<bool>(),
        ) {
            let held = held.min(epochs.len() - 1);
            let mut states = vec![[0; PAGES]];
            for writes in &epochs {
                let mut next = states[states.len() - 1];
                writes.iter().for_each(|(page, value)| next[*page] = *value);
                states.push(next);
            }
            let mut memory = states[held];
            (0..PAGES).filter(|p| part[*p]).for_each(|p| memory[p] = states[held + 1][p]);
            // The acknowledgement of the next one has come or not; and this one was the first or not.
            let acked = Epoch(held as u64 + u64::from(heard));
            let since = may_hold(Epoch(if on { held as u64 } else { 1 }), acked);
            let origin = Origin::acknowledged(REIGN, since, acked);
            let base = History::begin(REIGN, Epoch(held as u64)).base(&origin).unwrap();
            origin.difference(base).unwrap();
            let now = states[epochs.len()];
            let written = epochs.iter().skip(since.0 as usize).flatten();
            written.for_each(|(page, _)| memory[*page] = now[*page]);
            prop_assert_eq!(memory, now);
        }

        #[test]
        fn no_bytes_are_too_bad(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // Mostly a likely number of runs of pages.
            let mut bytes = bytes;
            if let [few, rest @ ..] = &mut bytes[..]
                && rest.len() >= 7
            {
                *few %= 3;
                rest[..7].fill(0);
            }
            if let Ok(base) = Base::parse(Epoch(1), &bytes, &layout(), &VOLUMES) {
                let mut wire = Vec::new();
                base.put_changes(&mut wire);
                prop_assert_eq!(wire, bytes);
                let end = |r: &PageRun| r.first + u64::from(r.count);
                prop_assert!(base.changes.pages.iter().all(|r| end(r) <= layout().pages(r.block).unwrap()));
                prop_assert!(base.changes.volumes.iter().all(|r| end(r) <= VOLUMES[usize::from(r.block)]));
            }
        }
    }

    #[test]
    fn another_reign_is_no_base() {
        let mine = History::begin(REIGN, Epoch(7));
        for other in [Reign { term: Term(5), ..REIGN }, Reign { generation: 2, ..REIGN }] {
            assert_eq!(History::begin(other, Epoch(7)).base(&mine.origin()), None);
        }
        assert!(History::begin(REIGN, Epoch(7)).base(&mine.origin()).is_some());
    }

    #[test]
    fn a_primary_believes_nobody_who_holds_less_or_more_than_he_can() {
        let origin = Origin::acknowledged(REIGN, Epoch(7), Epoch(7));
        let holds = |epoch| Base::new(Epoch(epoch), Changes::default());
        let believed: Vec<u64> = (0..20).filter(|epoch| origin.difference(holds(*epoch)).is_ok()).collect();
        assert_eq!(believed, (7..=7 + AHEAD).collect::<Vec<_>>());
        assert_eq!(History::begin(REIGN, Epoch(6)).base(&origin), None, "what has changed since is not known");
        // The blocks that it asks for beside come too.
        let asks = Base::new(Epoch(8), Changes { pages: runs_of(&[3]), volumes: Vec::new() });
        assert_eq!(origin.difference(asks.clone()).unwrap(), asks.changes);
    }

    #[test]
    fn what_does_not_follow_or_is_too_scattered_begins_anew() {
        let mut history = History::begin(REIGN, Epoch(7));
        history.record(Epoch(8), runs_of(&[1]).into_iter(), [].into_iter());
        assert_eq!(history.origin().since, Epoch(7));
        history.record(Epoch(10), runs_of(&[2]).into_iter(), [].into_iter());
        assert_eq!((history.origin().epoch, history.origin().since), (Epoch(10), Epoch(10)));
        history.record(Epoch(11), [].into_iter(), (0..).map(|first| PageRun { block: 0, first, count: 1 }));
        assert_eq!((history.origin().epoch, history.origin().since), (Epoch(11), Epoch(11)));
    }

    #[test]
    fn a_primary_refuses_a_base_that_cannot_be() {
        let mut mine = History::begin(REIGN, Epoch(7));
        mine.record(Epoch(8), runs_of(&[1]).into_iter(), runs_of(&[2]).into_iter());
        let changes = |page, block| Changes { pages: runs_of(&[page]), volumes: runs_of(&[block]) };
        assert!(mine.difference(Base::new(Epoch(6), Changes::default())).is_err());
        assert_eq!(mine.difference(Base::new(Epoch(7), Changes::default())).unwrap(), changes(1, 2));
        assert_eq!(mine.difference(Base::new(Epoch(9), changes(3, 4))).unwrap(), changes(3, 4));
        // One that is behind may be missing more beside.
        let both = Changes { pages: runs_of(&[1, 4]), volumes: runs_of(&[2, 4]) };
        assert_eq!(mine.difference(Base::new(Epoch(7), changes(4, 4))).unwrap(), both);
        for bytes in
            [vec![], vec![0; 7], vec![0; 8 + 15], vec![0; 8 + RUN_BYTES * (MAX_BASE_RUNS + 1)], vec![255; 8 + 16]]
        {
            assert!(Base::parse(Epoch(1), &bytes, &layout(), &VOLUMES).is_err());
        }
    }
}
