//! The power goes at every single step of a log's life: what is found afterwards is the last committed checkpoint, or the one
//! that was being committed, byte for byte.

mod disk;
mod guest;

use std::collections::BTreeSet;
use std::sync::Arc;

use disk::{Disk, Fate};
use guest::{Deed, Guest, Loading, VOLUME, act, at, deed, hello};
use ninefold_model::{Record, Term};
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_replica::stream::Reign;
use ninefold_replica::stream::page::PAGE_SIZE;
use ninefold_replica::stream::{Hello, PageRun};
use ninefold_snapshot::log::{At, Commit, Folder, Found, Log, LogError, New, Options};
use ninefold_snapshot::storage::{Storage, StorageFile};
use ninefold_volume::{Batch, Op};
use proptest::prelude::*;

const OPTIONS: Options = Options { segment: 12 << 10, limit: 200 << 10 };
const IMAGE: &str = "image";

#[derive(Debug, Clone)]
enum Act {
    Commit(Deed),
    /// A commit that is begun and dropped.
    GiveUp(Deed),
    Fold,
    /// So many committed batches reach the image.
    Apply(usize),
    /// All of them do, and are synced.
    Flush,
    Stand(u64),
    /// The host is a backup that was away: the first deeds happened elsewhere and come in parts, the last with the first checkpoint of
    /// another session.
    GoOn(Vec<Deed>, Deed),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => deed().prop_map(Act::Commit),
        1 => deed().prop_map(Act::GiveUp),
        3 => Just(Act::Fold),
        2 => (1..3usize).prop_map(Act::Apply),
        2 => Just(Act::Flush),
        1 => (6..9u64).prop_map(Act::Stand),
        2 => (prop::collection::vec(deed(), 0..3), deed()).prop_map(|(missed, first)| Act::GoOn(missed, first)),
    ];
    prop::collection::vec(act, 4..16)
}

/// What is known of a log from outside.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The guest at each commit, from 1 on; the last one may not be acknowledged.
    guests: Vec<Guest>,
    /// Which checkpoint each of them is; none for parts of one.
    ats: Vec<Option<At>>,
    acknowledged: usize,
    /// The log is to be another session's, and has no checkpoint of that yet.
    going_on: bool,
    publishing: bool,
    published: bool,
    /// What was noted, and what was being noted.
    standings: Vec<LogStanding>,
}

/// A host with a guest that is logged.
struct Host {
    log: Log,
    folder: Folder,
    image: Box<dyn StorageFile>,
    guest: Guest,
    /// What has changed since the last commit.
    dirty: BTreeSet<(u16, u64)>,
    operations: Vec<u8>,
    /// Committed operations that the image has not.
    queue: Vec<Vec<u8>>,
    session: u64,
    known: Known,
}

fn primary(term: u64) -> LogStanding {
    let record = Record { term: Term(term), primary: "host-a".parse().unwrap(), backups: Vec::new() };
    LogStanding::new(LogRole::Primary { record })
}

fn backup(session: u64) -> LogStanding {
    LogStanding::new(LogRole::Backup { session: Term(session), primary: "host-b".parse().unwrap() })
}

fn reign(session: u64) -> Reign {
    Reign { term: Term(session), generation: 1 }
}

/// The pages of a set with their contents.
fn gather(guest: &Guest, pages: &BTreeSet<(u16, u64)>) -> (Vec<PageRun>, Vec<u8>) {
    let runs = pages.iter().map(|&(block, first)| PageRun { block, first, count: 1 }).collect();
    let page =
        |&(block, page): &(u16, u64)| &guest.memory[usize::from(block)][page as usize * PAGE_SIZE..][..PAGE_SIZE];
    (runs, pages.iter().flat_map(page).copied().collect())
}

fn write(mut commit: Commit<'_>, guest: &Guest, dirty: &BTreeSet<(u16, u64)>, ops: &[u8]) -> Result<u64, LogError> {
    let is_zero = |&&(block, page): &&(u16, u64)| {
        guest.memory[usize::from(block)][page as usize * PAGE_SIZE..][..PAGE_SIZE].iter().all(|&b| b == 0)
    };
    // Zero pages in both ways.
    let (zeros, others): (BTreeSet<_>, BTreeSet<_>) = dirty.iter().partition(|page| page.1 % 2 == 0 && is_zero(page));
    let (runs, bytes) = gather(guest, &others);
    commit.pages(&runs, &bytes)?;
    commit.zeros(gather(guest, &zeros).0)?;
    commit.device_state(&guest.state)?;
    commit.channel_output(0, &guest.console)?;
    commit.volume_writes(0, 0, ops)?;
    commit.finish().map(|committed| committed.number)
}

fn play(image: &dyn StorageFile, operations: &[u8]) -> Result<(), LogError> {
    let failed = |source| LogError::Target { what: "the image cannot be written".into(), source };
    for op in Batch::parse(operations.to_vec(), VOLUME as u64).unwrap().ops() {
        let Op::Write { at, data } = op else { panic!("only writes are made") };
        image.write_at(*at, data.as_ref()).map_err(failed)?;
    }
    Ok(())
}

/// A disk with an image of the guest's volume.
fn prepared() -> Disk {
    let disk = Disk::new();
    let image = disk.create(IMAGE).unwrap();
    image.write_at(0, &[0; VOLUME]).and_then(|()| image.sync()).and_then(|()| disk.sync()).unwrap();
    disk
}

impl Host {
    /// Makes a log; what is known of it comes back in any case.
    fn start(disk: &Disk, rounds: &[Deed], first: &Deed) -> Result<Host, Known> {
        let (mut known, mut guest) = (Known { standings: vec![primary(5)], ..Known::default() }, Guest::new());
        Self::make(disk, rounds, first, &mut known, &mut guest).map_err(|_| known)
    }

    fn make(
        disk: &Disk,
        rounds: &[Deed],
        first: &Deed,
        known: &mut Known,
        guest: &mut Guest,
    ) -> Result<Host, LogError> {
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let image = disk.open(IMAGE).unwrap();
        // The volume is copied by nobody: what the guest has written before is in the image.
        let mut new = New::create(Arc::clone(&storage), hello(), &primary(5), OPTIONS)?;
        let (runs, bytes) = guest.all();
        new.pages(&runs, &bytes)?;
        for round in rounds {
            let (runs, bytes, operations) = act(guest, round);
            new.pages(&runs, &bytes)?;
            new.sync()?;
            play(&*image, &operations)?;
        }
        let (.., operations) = act(guest, first);
        let dirty = first.touches.iter().map(|t| (t.0, t.1)).collect();
        image.sync().map_err(|source| LogError::Target { what: "sync".into(), source })?;
        known.guests.push(guest.clone());
        known.ats.push(Some(at(1)));
        write(new.first(at(1))?, guest, &dirty, &operations)?;
        known.publishing = true;
        let log = new.publish()?;
        known.published = true;
        known.acknowledged = 1;
        let folder = log.folder()?;
        Ok(Host {
            log,
            folder,
            image,
            guest: guest.clone(),
            dirty: BTreeSet::new(),
            operations: Vec::new(),
            queue: vec![operations],
            session: 5,
            known: known.clone(),
        })
    }

    fn all(&mut self, acts: &[Act]) -> Result<(), LogError> {
        acts.iter().try_for_each(|act| self.one(act))
    }

    fn one(&mut self, what: &Act) -> Result<(), LogError> {
        match what {
            Act::Commit(deed) => {
                self.happens(deed);
                let number = self.log.last() + 1;
                let at = self.at(number);
                self.tries(Some(at));
                let commit = match self.log.begin(at) {
                    // Nothing is folded while the volume's operations are not in its image.
                    Err(LogError::TooLong { .. }) => {
                        self.known.guests.pop();
                        self.known.ats.pop();
                        return Ok(());
                    }
                    other => other?,
                };
                assert_eq!(write(commit, &self.guest, &self.dirty, &self.operations)?, number);
                self.known.acknowledged += 1;
                self.dirty.clear();
                self.queue.push(std::mem::take(&mut self.operations));
            }
            Act::GiveUp(deed) => {
                self.happens(deed);
                let at = self.at(self.log.last() + 1);
                let mut commit = match self.log.begin(at) {
                    Err(LogError::TooLong { .. }) => return Ok(()),
                    other => other?,
                };
                let (runs, bytes) = gather(&self.guest, &self.dirty);
                commit.pages(&runs, &bytes)?;
                commit.device_state(&vec![7; 3000])?;
            }
            Act::Fold => {
                self.folder.fold()?;
            }
            Act::Apply(count) => self.apply(*count)?,
            Act::Flush => {
                let last = self.log.last();
                self.apply(usize::MAX)?;
                self.image.sync().map_err(|source| LogError::Target { what: "sync".into(), source })?;
                self.log.shared().images_hold(last);
            }
            Act::Stand(term) => {
                let done = self.known.standings.len() - 1;
                self.known.standings.drain(..done);
                self.known.standings.push(primary(*term));
                self.log.stand(&primary(*term))?;
                self.known.standings.remove(0);
            }
            Act::GoOn(missed, first) => self.go_on(missed, first)?,
        }
        Ok(())
    }

    fn at(&self, number: u64) -> At {
        At { session: Term(self.session), term: Term(5 + self.session), ..at(number) }
    }

    /// A commit is about to be made.
    fn tries(&mut self, at: Option<At>) {
        self.known.guests.truncate(self.known.acknowledged);
        self.known.ats.truncate(self.known.acknowledged);
        self.known.guests.push(self.guest.clone());
        self.known.ats.push(at);
    }

    fn go_on(&mut self, missed: &[Deed], first: &Deed) -> Result<(), LogError> {
        // Nothing of the former session is left to be applied. It is not durable.
        self.apply(usize::MAX)?;
        self.session += 1;
        let standing = backup(self.session);
        let (done, going) = (self.known.standings.len() - 1, std::mem::replace(&mut self.known.going_on, true));
        assert!(!going);
        self.known.standings.drain(..done);
        self.known.standings.push(standing.clone());
        let hello = Hello { term: Term(self.session), reign: Some(reign(self.session)), ..hello() };
        self.log.go_on(hello, &standing)?;
        self.known.standings.remove(0);
        for deed in missed {
            self.happens(deed);
            let (runs, bytes) = gather(&self.guest, &std::mem::take(&mut self.dirty));
            self.tries(None);
            self.makes_room()?;
            self.log.part(Term(5 + self.session), &runs, &bytes)?;
            self.known.acknowledged += 1;
            // A resync: past the log.
            play(&*self.image, &std::mem::take(&mut self.operations))?;
        }
        self.image.sync().map_err(|source| LogError::Target { what: "sync".into(), source })?;
        self.happens(first);
        let number = self.log.last() + 1;
        let at = self.at(number);
        self.tries(Some(at));
        self.makes_room()?;
        write(self.log.begin(at)?, &self.guest, &self.dirty, &self.operations)?;
        self.known.acknowledged += 1;
        self.known.going_on = false;
        self.dirty.clear();
        self.queue.push(std::mem::take(&mut self.operations));
        Ok(())
    }

    /// Whatever the log holds, and however much comes in parts, it can be folded until there is room for more: nobody waits for the
    /// images, which are not equal to the other host's before the first checkpoint.
    fn makes_room(&mut self) -> Result<(), LogError> {
        while self.log.shared().waiting_bytes() > OPTIONS.limit {
            assert!(self.folder.fold()?, "nothing can be folded, and nothing more be committed");
        }
        Ok(())
    }

    fn happens(&mut self, deed: &Deed) {
        let (.., operations) = act(&mut self.guest, deed);
        self.dirty.extend(deed.touches.iter().map(|t| (t.0, t.1)));
        self.operations.extend(operations);
    }

    fn apply(&mut self, count: usize) -> Result<(), LogError> {
        for _ in 0..count.min(self.queue.len()) {
            play(&*self.image, &self.queue[0])?;
            self.queue.remove(0);
        }
        Ok(())
    }

    /// What is on `disk` after a loss of power is what it has to be. Goes on from there.
    fn recover(disk: &Disk, known: &Known) -> Result<Option<Host>, LogError> {
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let before = disk.contents();
        let found = match Found::look(Arc::clone(&storage)) {
            Err(LogError::None) => {
                assert!(!known.published || known.going_on, "a published log is gone");
                return Ok(None);
            }
            Err(error) if disk.is_off() => return Err(error),
            other => other.unwrap_or_else(|e| panic!("{e:?}")),
        };
        assert_eq!(disk.contents(), before, "looking at a log has changed it");
        assert!(known.publishing, "there is a log before it was published");
        let last = found.last();
        let number = last.number as usize;
        // What is for another session counts when that has a checkpoint.
        let parts = known.ats[..known.acknowledged].iter().rev().take_while(|at| at.is_none()).count();
        let least = known.acknowledged - parts;
        assert!(number >= least.max(1), "commit {number} after {least} were acknowledged");
        let truth = known.guests.get(number - 1).unwrap_or_else(|| panic!("commit {number} was never made"));
        assert_eq!(Some(last.at), known.ats[number - 1], "a part is taken for a checkpoint");
        assert!(known.standings.contains(found.standing()));
        assert!(found.hello() == &hello());

        let standing = found.standing().clone();
        if let LogRole::Backup { session, .. } = standing.role {
            assert_eq!((session, found.reign()), (last.at.session, Some(reign(session.0))));
        }
        let recovered = found.recover()?;
        let image = disk.open(IMAGE).unwrap();
        let mut memory = Loading::new();
        let held = recovered.load(&Loading::fresh, &mut memory, &mut |volume, operations| {
            assert_eq!(volume, 0);
            play(&*image, &operations)
        })?;
        image.sync().map_err(|source| LogError::Target { what: "sync".into(), source })?;
        assert_eq!(held.committed, last);
        let mut volume = vec![0; VOLUME];
        image.read_at(0, &mut volume).unwrap();
        let console = held.output.first().cloned().unwrap_or_default();
        let now = Guest { memory: memory.0, state: held.device_state, console, volume };
        assert_eq!(&now, truth, "commit {number}");

        let known = Known {
            guests: known.guests[..number].to_vec(),
            ats: known.ats[..number].to_vec(),
            acknowledged: number,
            going_on: false,
            publishing: true,
            published: true,
            standings: vec![standing],
        };
        let log = recovered.resume(Hello { reign: Some(reign(last.at.session.0)), ..hello() }, OPTIONS)?;
        let folder = log.folder()?;
        Ok(Some(Host {
            log,
            folder,
            image,
            guest: now,
            dirty: BTreeSet::new(),
            operations: Vec::new(),
            queue: Vec::new(),
            session: last.at.session.0,
            known,
        }))
    }
}

/// Runs a history on a disk that loses its power in step `crash`; answers what is known, and how many steps there were.
fn history(disk: &Disk, rounds: &[Deed], first: &Deed, acts: &[Act], crash: Option<u64>) -> (Known, u64) {
    disk.crash_at(crash);
    let known = match Host::start(disk, rounds, first) {
        Ok(mut host) => {
            if let Err(error) = host.all(acts) {
                assert!(disk.is_off(), "{error:?}");
            }
            host.known
        }
        Err(known) => {
            assert!(disk.is_off());
            known
        }
    };
    (known, disk.steps())
}

/// None: only the process dies.
const FATES: [Option<Fate>; 6] =
    [None, Some(Fate::Lost), Some(Fate::Kept), Some(Fate::Any(1)), Some(Fate::Any(2)), Some(Fate::Any(3))];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_last_commit_survives_a_loss_of_power_at_every_step(
        rounds in prop::collection::vec(deed(), 0..2),
        first in deed(),
        acts in acts(),
        after in acts(),
        seed in any::<u64>(),
    ) {
        let steps = history(&prepared(), &rounds, &first, &acts, None).1;
        for crash in 1..=steps {
            let disk = prepared();
            let known = history(&disk, &rounds, &first, &acts, Some(crash)).0;
            for fate in FATES {
                let fate = if let Some(Fate::Any(n)) = fate { Some(Fate::Any(seed ^ crash << 8 ^ n)) } else { fate };
                // The power may go again while the log is recovered or goes on.
                let again = fate.map_or_else(|| disk.restart(), |fate| disk.power_on(fate));
                again.crash_at(Some(1 + seed % 40));
                let known = match Host::recover(&again, &known) {
                    Ok(None) => continue,
                    Ok(Some(mut host)) => {
                        if let Err(error) = host.all(&after) {
                            prop_assert!(again.is_off(), "{error:?}");
                        }
                        host.known
                    }
                    Err(_) => known.clone(),
                };
                let last = again.power_on(fate.unwrap_or(Fate::Lost));
                // A log that was being published may still be lost, until somebody has gone on from it.
                let Some(mut host) = Host::recover(&last, &known).unwrap() else { continue };
                // And it goes on to the end.
                host.all(&after).unwrap();
                let known = host.known.clone();
                drop(host);
                Host::recover(&last.power_on(Fate::Lost), &known).unwrap().expect("it was there before");
            }
        }
    }
}

/// Nothing of what the volume was told is in its image when the host comes back as a backup, the log is as long as it may be, and as much
/// again comes in parts.
#[test]
fn a_long_log_goes_on_however_much_has_changed() {
    let all = |n: u64| Deed {
        touches: (0..20).map(|page| (0, page, Some((false, n * 100 + page + 1)))).collect(),
        state: vec![n as u8],
        writes: vec![(n as usize * 8, 8, n as u8)],
        ..Deed::default()
    };
    let disk = prepared();
    let mut host = Host::start(&disk, &[], &all(1)).unwrap();
    for n in 2..8 {
        host.one(&Act::Commit(all(n))).unwrap();
    }
    let former = host.log.last();
    assert!(host.log.shared().waiting_bytes() > OPTIONS.limit);
    host.go_on(&(8..30).map(all).collect::<Vec<_>>(), &all(30)).unwrap();
    // Of what the session's checkpoints write the image has nothing: those stay.
    while host.folder.fold().unwrap() {}
    host.one(&Act::Commit(all(31))).unwrap();
    while host.folder.fold().unwrap() {}
    assert_eq!(host.log.last(), former + 24);
    let known = host.known.clone();
    drop(host);
    Host::recover(&disk.power_on(Fate::Lost), &known).unwrap().expect("it was there before");
}

/// The power goes twice, each time while the standing is written: what it left of the first is not what the second destroys.
#[test]
fn the_standing_survives_two_losses_of_power() {
    let first = Deed { touches: vec![(0, 1, Some((false, 1)))], state: vec![1], ..Deed::default() };
    let acts = [Act::Stand(6)];
    let begun = history(&prepared(), &[], &first, &[], None).1;
    let steps = history(&prepared(), &[], &first, &acts, None).1;
    assert!(steps >= begun + 4, "two places, each written and synced");
    let mut torn = 0;
    for crash in begun + 1..=steps {
        for n in 0..24 {
            let disk = prepared();
            let known = history(&disk, &[], &first, &acts, Some(crash)).0;
            // Without a loss of power: the steps of a recovery that goes on to write it.
            let whole = disk.power_on(Fate::Any(n));
            let start = |disk: &Disk| Host::recover(disk, &known).map(|host| host.expect("it was published"));
            whole.crash_at(None);
            let mut host = start(&whole).unwrap();
            let before = whole.steps();
            host.one(&Act::Stand(7)).unwrap();
            for crash in before + 1..=whole.steps() {
                let again = disk.power_on(Fate::Any(n));
                again.crash_at(Some(crash));
                let mut host = start(&again).unwrap();
                host.one(&Act::Stand(7)).unwrap_err();
                let last = again.power_on(Fate::Any(n ^ crash << 8));
                Host::recover(&last, &host.known).unwrap();
                torn += 1;
            }
        }
    }
    assert!(torn >= 24 * 16, "{torn}");
}

/// A log takes the place of another: at no step is there anything but the old one, none, or the new one.
#[test]
fn a_log_is_replaced_whole_or_not_at_all() {
    let deeds = |n: u64| Deed { touches: vec![(0, n, Some((false, n)))], state: vec![n as u8], ..Deed::default() };
    let acts: Vec<Act> = (1..9).flat_map(|n| [Act::Commit(deeds(n)), Act::Flush, Act::Fold]).collect();
    let disk = prepared();
    let old = history(&disk, &[], &deeds(10), &acts, None).0;
    let old_disk = disk.power_on(Fate::Lost);
    let steps = history(&old_disk.restart(), &[deeds(11)], &deeds(12), &[], None).1;
    let mut seen = [0; 3];
    for crash in 1..=steps + 1 {
        for n in 0..20 {
            let disk = old_disk.restart();
            // A new guest, a new volume.
            let image = disk.open(IMAGE).unwrap();
            image.write_at(0, &[0; VOLUME]).and_then(|()| image.sync()).unwrap();
            let new = history(&disk, &[deeds(11)], &deeds(12), &[], Some(crash)).0;
            let disk = disk.power_on(match n {
                0 => Fate::Lost,
                1 => Fate::Kept,
                n => Fate::Any(n ^ crash << 8),
            });
            let storage: Arc<dyn Storage> = Arc::new(disk.clone());
            match Found::look(storage) {
                Ok(found) if found.last().number as usize == old.acknowledged && !new.publishing => {
                    Host::recover(&disk, &old).unwrap();
                    seen[0] += 1;
                }
                Ok(_) => {
                    Host::recover(&disk, &new).unwrap();
                    seen[2] += 1;
                }
                Err(LogError::None) => {
                    assert!(!new.published);
                    seen[1] += 1;
                }
                Err(error) => panic!("step {crash}: {error:?}"),
            }
        }
    }
    assert!(seen.iter().all(|&n| n > 20), "{seen:?}");
}
