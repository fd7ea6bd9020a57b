//! The judge against the truth.

use ninefold_model::event::{EventKind, FailoverPhases};
use ninefold_model::{Backup, Epoch, HostName, Record, Term};
use proptest::prelude::*;

use super::judge::{Fact, Place, Start, What, judge, may_lack, may_see_errors, whole_on_disk};

fn host(n: usize) -> HostName {
    ["a", "b"][n].parse().unwrap()
}

fn ready() -> EventKind {
    EventKind::BackupReady { primary: host(0), epoch: Epoch(1) }
}

fn took_over() -> EventKind {
    EventKind::TookOver { term: Term(1), epoch: Epoch(1), phases: FailoverPhases::default() }
}

/// The truth: a VM on two hosts, and what the protocol lets happen to it. It writes down what the judge gets to see.
#[derive(Debug)]
struct Life {
    facts: Vec<Fact>,
    now: u64,
    non_volatile: bool,
    record: Record,
    /// Sessions that were opened up to now.
    sessions: u64,
    /// What each host has in memory: the running VM, or a standby of this session.
    runs: [bool; 2],
    standby: [Option<Term>; 2],
    /// Whether its log has all that was let go under the record that names it.
    log: [bool; 2],
    /// Whether its volumes, which acknowledge on disk, have all that clients were told.
    disk: [bool; 2],
    /// A record is read as soon as something has happened.
    prompt: bool,
    gone: bool,
}

/// What may happen. Hosts are the primary (`true`) or the other one.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The other becomes ready, and perhaps bound. Its event may get lost.
    Sync {
        bind: bool,
    },
    /// The primary goes on without its backup.
    Drop,
    /// The backup takes over, though the primary may live.
    TakeOver,
    Kill {
        primary: bool,
    },
    LogLost {
        primary: bool,
    },
    LogBegun,
    /// A host goes on from its log.
    Recover {
        primary: bool,
    },
    /// The witness is read at last.
    Read,
}

impl Life {
    fn new(non_volatile: bool, prompt: bool) -> Self {
        let mut life = Self {
            facts: Vec::new(),
            now: 0,
            non_volatile,
            record: Record::boot(host(0)),
            sessions: 1,
            runs: [true, false],
            standby: [None; 2],
            log: [false; 2],
            disk: [true, false],
            prompt,
            gone: false,
        };
        life.say(0, EventKind::Booted { term: Term(1) });
        life.read();
        life
    }

    fn tell(&mut self, what: What) {
        self.now += 1;
        self.facts.push(Fact { at_us: self.now, what });
    }

    fn say(&mut self, n: usize, event: EventKind) {
        self.tell(What::Said { host: host(n), event });
    }

    fn read(&mut self) {
        self.tell(What::Held { record: Some(self.record.clone()) });
    }

    fn primary(&self) -> usize {
        usize::from(self.record.primary == host(1))
    }

    fn bound(&self) -> Option<(usize, Term)> {
        self.record.backups.first().map(|b| (usize::from(b.host == host(1)), b.session))
    }

    /// The truth about who holds the state.
    fn held(&self) -> bool {
        let p = self.primary();
        let backup = self.bound().is_some_and(|(b, session)| self.standby[b] == Some(session) || self.log[b]);
        self.runs[p] || self.log[p] || backup
    }

    fn step(&mut self, step: Step) {
        let p = self.primary();
        let other = 1 - p;
        match step {
            Step::Sync { bind } if self.runs[p] && self.bound().is_none() => {
                self.sessions = self.record.term.0.max(self.sessions) + 1;
                // The session's name is a term of its own.
                self.record = Record { term: Term(self.sessions), ..self.record.clone() };
                let session = self.record.term;
                if self.runs[other] {
                    self.runs[other] = false;
                    self.say(other, EventKind::StoodDown { term: session, reason: String::new() });
                }
                self.standby[other] = Some(session);
                self.log[other] = self.non_volatile;
                // A resync makes a mixture of them first.
                self.disk[other] = false;
                self.say(other, ready());
                if bind {
                    self.record = self.record.bound(vec![Backup { host: host(other), session }]);
                    // From now on what leaves is on the backup's disk, and perhaps not yet on the primary's.
                    self.disk = [other == 0, other == 1];
                }
            }
            Step::Drop if self.runs[p] && self.bound().is_some() => {
                self.record = self.record.alone(host(p));
                // Nothing leaves before it is on its own disk.
                self.disk = [p == 0, p == 1];
            }
            Step::TakeOver => {
                if let Some((b, session)) = self.bound()
                    && self.standby[b] == Some(session)
                {
                    self.record = self.record.alone(host(b));
                    self.standby[b] = None;
                    self.runs[b] = true;
                    self.disk = [b == 0, b == 1];
                    self.say(b, took_over());
                }
            }
            Step::Kill { primary } => {
                let n = if primary { p } else { other };
                self.runs[n] = false;
                self.standby[n] = None;
                self.tell(What::Killed { host: host(n) });
            }
            Step::LogLost { primary } => {
                let n = if primary { p } else { other };
                if self.log[n] {
                    self.log[n] = false;
                    self.say(n, EventKind::LogLost { reason: String::new() });
                }
            }
            Step::LogBegun if self.non_volatile && self.runs[p] => {
                self.log[p] = true;
                self.say(p, EventKind::NonVolatile { epoch: Epoch(1), log_ms: 1 });
            }
            Step::Recover { primary } => {
                let n = if primary { p } else { other };
                let may = n == p || self.bound().is_some_and(|(b, _)| b == n);
                if may && self.log[n] && !self.runs[n] && self.standby[n].is_none() {
                    self.record = self.record.alone(host(n));
                    self.runs[n] = true;
                    self.say(n, EventKind::Recovered { term: self.record.term, epoch: Epoch(1), load_ms: 1 });
                }
            }
            Step::Read => self.read(),
            _ => {}
        }
        self.gone |= !self.held();
        if self.prompt {
            self.read();
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => prop::bool::weighted(0.8).prop_map(|bind| Step::Sync { bind }),
        2 => Just(Step::Drop),
        2 => Just(Step::TakeOver),
        4 => any::<bool>().prop_map(|primary| Step::Kill { primary }),
        1 => any::<bool>().prop_map(|primary| Step::LogLost { primary }),
        2 => Just(Step::LogBegun),
        2 => any::<bool>().prop_map(|primary| Step::Recover { primary }),
        2 => Just(Step::Read),
    ]
}

fn play(steps: &[Step], non_volatile: bool, prompt: bool) -> Life {
    let mut life = Life::new(non_volatile, prompt);
    for step in steps {
        if life.gone {
            break;
        }
        life.step(*step);
    }
    life.read();
    life
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// With each record read at once the judge knows.
    #[test]
    fn the_judge_knows_the_truth(steps in prop::collection::vec(step(), 1..40), non_volatile: bool) {
        let life = play(&steps, non_volatile, true);
        prop_assert_eq!(judge(&life.facts, non_volatile).may_be_lost(), life.gone, "{:#?}", life);
    }

    /// The hosts that the judge names have all of it on their disks, and some host always has.
    #[test]
    fn who_is_said_to_have_all_on_disk_has_it(steps in prop::collection::vec(step(), 1..40), prompt: bool) {
        let life = play(&steps, false, prompt);
        let whole = whole_on_disk(&life.facts);
        prop_assert!(!whole.is_empty());
        prop_assert!(whole.iter().all(|h| life.disk[usize::from(*h == host(1))]), "{:#?}", life);
        for n in [0, 1] {
            let lacks = may_lack(Start::Forced, &host(n), true, &life.facts);
            prop_assert!(lacks || life.disk[n], "{:#?}", life);
            prop_assert!(!may_lack(Start::Plain, &host(n), true, &life.facts));
        }
    }

    /// Whenever the witness is read, and whatever the dead have not said any more: nobody is accused wrongly.
    #[test]
    fn a_legitimate_loss_is_never_called_otherwise(
        steps in prop::collection::vec(step(), 1..40),
        non_volatile: bool,
        lost in prop::collection::vec(0u8..8, 200),
    ) {
        let life = play(&steps, non_volatile, false);
        // What takes a holder away is known to the runner, and what gives one may not have been heard.
        let heard: Vec<_> = life.facts.iter().zip(lost).filter(|(fact, lost)| *lost != 0 || !gives(&fact.what)).map(|(f, _)| f.clone()).collect();
        if life.gone {
            prop_assert!(judge(&heard, non_volatile).may_be_lost(), "{:#?}", life);
        }
    }
}

fn gives(what: &What) -> bool {
    matches!(
        what,
        What::Said {
            event: EventKind::BackupReady { .. }
                | EventKind::TookOver { .. }
                | EventKind::Recovered { .. }
                | EventKind::NonVolatile { .. },
            ..
        }
    )
}

fn fact(at_us: u64, what: What) -> Fact {
    Fact { at_us, what }
}

fn said(at_us: u64, n: usize, event: EventKind) -> Fact {
    fact(at_us, What::Said { host: host(n), event })
}

fn killed(at_us: u64, n: usize) -> Fact {
    fact(at_us, What::Killed { host: host(n) })
}

fn held(at_us: u64, term: u64, primary: usize, backup: Option<u64>) -> Fact {
    let backups = backup.map(|session| Backup { host: host(1 - primary), session: Term(session) });
    let record = Record { term: Term(term), primary: host(primary), backups: backups.into_iter().collect() };
    fact(at_us, What::Held { record: Some(record) })
}

fn booted() -> Fact {
    said(1, 0, EventKind::Booted { term: Term(1) })
}

#[test]
fn a_backup_that_is_bound_holds_it() {
    let begin = [booted(), said(2, 1, ready()), held(3, 2, 0, Some(1))];
    let one = judge(&[&begin[..], &[killed(4, 0), held(5, 2, 0, Some(1))]].concat(), false);
    assert!(!one.may_be_lost());
    assert_eq!(one.moments[0].holders.len(), 1);
    assert_eq!((one.moments[0].holders[0].host.as_str(), one.moments[0].holders[0].place), ("b", Place::Memory));
    // It has taken over before the witness is read.
    assert!(!judge(&[&begin[..], &[killed(4, 0), held(5, 3, 1, None)]].concat(), false).may_be_lost());
    // The primary had let it go before.
    assert!(judge(&[&begin[..], &[killed(4, 0), held(5, 3, 0, None)]].concat(), false).may_be_lost());
    // Both are killed.
    assert!(judge(&[&begin[..], &[killed(4, 0), killed(5, 1), held(6, 2, 0, Some(1))]].concat(), false).may_be_lost());
    // Killed before it was ready again.
    let again = [killed(4, 1), held(5, 3, 0, None), said(6, 1, ready()), killed(7, 0), held(8, 5, 0, Some(3))];
    assert!(!judge(&[&begin[..], &again].concat(), false).may_be_lost());
}

#[test]
fn a_log_outlives_its_host() {
    let begin = [booted(), said(2, 0, EventKind::NonVolatile { epoch: Epoch(1), log_ms: 1 }), held(3, 1, 0, None)];
    let dead = [killed(4, 0), held(5, 1, 0, None)];
    let verdict = judge(&[&begin[..], &dead].concat(), true);
    assert_eq!(verdict.moments[0].holders[0].place, Place::Log);
    // And not its own loss.
    let lost = said(4, 0, EventKind::LogLost { reason: String::new() });
    assert!(judge(&[&begin[..], &[lost], &[killed(5, 0), held(6, 1, 0, None)]].concat(), true).may_be_lost());
}

/// The backup is lost, then the primary's power.
#[test]
fn after_the_backup_and_the_primary_were_lost_one_disk_has_all_of_it() {
    let begin = [booted(), said(2, 1, ready()), held(3, 2, 0, Some(1)), killed(4, 1)];
    let with = |more: &[Fact]| [&begin[..], more].concat();
    // The primary had not yet let its backup go: nothing has left since that the backup did not have.
    let bound = with(&[killed(5, 0), held(6, 2, 0, Some(1))]);
    assert_eq!(whole_on_disk(&bound), [host(1)]);
    assert!(may_lack(Start::Forced, &host(0), true, &bound) && !may_lack(Start::Forced, &host(1), true, &bound));
    // It had: what left since was on its own disk.
    let alone = with(&[held(5, 3, 0, None), killed(6, 0), held(7, 3, 0, None)]);
    assert_eq!(whole_on_disk(&alone), [host(0)]);
    assert!(!may_lack(Start::Forced, &host(0), true, &alone) && may_lack(Start::Forced, &host(1), true, &alone));
    // Acknowledged in memory: whoever forces it may lack something, and whoever was not refused says that he does not.
    assert!(may_lack(Start::Forced, &host(0), false, &alone));
    assert!(!may_lack(Start::Plain, &host(0), false, &alone));
    // The order in which facts come in does not matter.
    assert_eq!(whole_on_disk(&[alone.last().unwrap().clone(), held(5, 2, 0, Some(1))]), [host(0)]);
    assert_eq!(whole_on_disk(&[booted(), fact(9, What::Held { record: None })]), []);
}

#[test]
fn without_a_word_of_the_witness_nobody_is_accused() {
    assert!(judge(&[booted(), killed(2, 0)], false).may_be_lost());
}

#[test]
fn a_guest_sees_errors_only_when_its_host_is_alone_with_a_bad_disk() {
    let failed = || EventKind::VolumeFailed { volume: "data".parse().unwrap(), reason: String::new() };
    let recovered = || EventKind::VolumeRecovered { volume: "data".parse().unwrap() };
    let unprotected = || EventKind::Unprotected { term: Term(3), reason: String::new() };
    let protected = EventKind::Protected {
        term: Term(2),
        backup: host(1),
        sync_ms: 1,
        bytes: 1,
        volume_bytes: 1,
        continued: false,
    };
    let begin = [booted(), said(2, 0, protected)];
    let with = |more: &[Fact]| may_see_errors(&[&begin[..], more].concat());
    assert!(!with(&[said(3, 0, failed())]), "the backup has it");
    assert!(!with(&[said(3, 1, failed()), said(4, 0, unprotected())]), "the backup's disk is not the guest's");
    assert!(with(&[said(3, 0, failed()), said(4, 0, unprotected())]));
    assert!(with(&[said(3, 0, unprotected()), said(4, 0, failed())]));
    assert!(!with(&[said(3, 0, failed()), said(4, 0, recovered()), said(5, 0, unprotected())]));
    assert!(!with(&[said(3, 0, failed()), said(4, 1, took_over())]), "it went where the disk is good");
}
