//! Going on from a log that nobody goes on from by himself: one that is damaged, or behind what the VM's clients were told.
//!
//! ```text
//!   asked ──► the witness's record ──► read the log as far as it is whole ──► what it would go back to, and what is lost
//!   forced ─► the same ──► keep the log aside (noted) ──► a QEMU with its memory ──► the witness, as for a boot
//! ```
//!
//! Volumes and memory are one checkpoint. A log has what was done to the volumes and not what they were before: so the images can be brought to
//! its checkpoint only while they are not beyond it, and a VM with volumes goes on only from a log that is whole and that no image has overtaken,
//! as far as the log and the witness tell.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Instant;

use ninefold_control::{Answer, LogReport, Refusal, Reply};
use ninefold_model::{HostName, Record, Term};
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_snapshot::log::{Back, PlayVolume};

use crate::backup::loaded::{Loaded, Wanted, wanted};
use crate::backup::parking::Former;
use crate::backup::standby;
use crate::config::KeeperConfig;
use crate::devices::disks::Disks;
use crate::devices::guest_io::HEALTH;
use crate::durable::log::place::{self, Kept};
use crate::durable::mixture::Cause;
use crate::durable::recovery::{self, Place};
use crate::error::{KeeperError, report};
use crate::health::shared;
use crate::msg::{Msg, SnapshotEvent};

const UNKNOWN: &str = "whether another host has had the VM since, or this one without its log, is not known";

/// What the witness holds; the error says why that is not known.
pub type Held = Result<Option<Record>, String>;

/// Answers `reply` with what this host's log would be gone back to, in a thread.
///
/// # Errors
/// No more threads.
pub fn ask(config: Arc<KeeperConfig>, disks: Arc<Disks>, held: Held, reply: Sender<Reply>) -> Result<(), KeeperError> {
    let run = move || {
        let answer = look(&config, &disks).and_then(|back| {
            // What cannot be loaded is found out now.
            back.verify().map_err(|e| report(&e))?;
            Ok(tell(&back, &config, &disks, &held))
        });
        let told = answer.map(|report| Answer::Log { report: Box::new(report) });
        let _ = reply.send(told.map_err(|reason| Refusal::LogUnusable { reason }));
    };
    thread::Builder::new().name("recovery".into()).spawn(run).map(drop).map_err(KeeperError::Thread)
}

/// Starts a thread that loads what can be gone back to, after `former` has ended; `record` is what the witness holds. With the note that the
/// log is kept.
///
/// # Errors
/// No more threads.
pub fn load(
    id: u64,
    config: Arc<KeeperConfig>,
    into: Place,
    record: Option<Record>,
    former: Former,
    core: Sender<Msg>,
) -> Result<(Wanted, Kept), KeeperError> {
    let (ours, is_wanted) = wanted();
    let kept = Kept::of(place::place(&config));
    let note = kept.clone();
    let run = move || {
        drop(former);
        let news = match loaded(&config, &into, record, &is_wanted, note) {
            Ok(loaded) => SnapshotEvent::Loaded(Box::new(loaded)),
            Err(reason) => SnapshotEvent::NotLoaded(reason),
        };
        let _ = core.send(Msg::Snapshot { id, news });
    };
    thread::Builder::new().name("recovery".into()).spawn(run).map_err(KeeperError::Thread)?;
    Ok((ours, kept))
}

fn look(config: &KeeperConfig, disks: &Disks) -> Result<Back, String> {
    let place = place::place(config);
    if !place.exists() {
        return Err("there is no log on this host".into());
    }
    let back =
        Back::look(place::open_if_free(&place)?, &|hello| recovery::check(hello, config)).map_err(|e| report(&e))?;
    recovery::check_host(back.standing(), config)?;
    recovery::check_volumes(disks)?;
    Ok(back)
}

fn tell(back: &Back, config: &KeeperConfig, disks: &Disks, held: &Held) -> LogReport {
    let (last, known) = (back.last(), back.known());
    let since = known.time_ms.saturating_sub(last.time_ms);
    let standing = back.standing();
    let newest = newest_term(last.at.term, standing, true);
    let newer = newer(standing, newest, &config.host.name, held);
    let state = Images {
        volumes: !back.hello().spec.hardware.volumes.is_empty(),
        damaged: back.damage().is_some(),
        between_sessions: back.is_between_sessions(),
        overtaken: overtaken(standing, newest, &config.host.name, held),
        perhaps_overtaken: perhaps_overtaken(standing, newest, &config.host.name, held),
        mixture: disks.mixture().found().filter(|cause| *cause != Cause::Log).is_some(),
    };
    LogReport {
        host: config.host.name.clone(),
        primary: primary(standing).clone(),
        term: newest_term(last.at.term, standing, back.damage().is_none() && !back.is_between_sessions()),
        epoch: last.at.epoch,
        time_ms: last.time_ms,
        damage: back.damage().map(str::to_owned),
        lost_checkpoints: known.commit.saturating_sub(last.number),
        lost_ms: if last.time_ms == 0 { 0 } else { since },
        newer,
        refused: state.refusal().map(str::to_owned),
    }
}

/// The newest term that the checkpoint is known to be of. Commits say theirs. A log that `ends_with_it` may have noted a newer
/// one that the witness has held: the primary has bound a backup since that commit.
fn newest_term(said: Term, standing: &LogStanding, ends_with_it: bool) -> Term {
    if ends_with_it { said.max(standing.known_term()) } else { said }
}

fn primary(standing: &LogStanding) -> &HostName {
    let (LogRole::Primary { record: Record { primary, .. } } | LogRole::Backup { primary, .. }) = &standing.role;
    primary
}

/// What this host's images may be, beside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Images {
    /// There are some.
    volumes: bool,
    /// Commits behind the one that is gone back to were durable, and may be in the images.
    damaged: bool,
    between_sessions: bool,
    /// The VM went on here without the log.
    overtaken: bool,
    /// It may have, before another host had it.
    perhaps_overtaken: bool,
    mixture: bool,
}

impl Images {
    /// Why the images cannot be brought to the log's checkpoint.
    fn refusal(self) -> Option<&'static str> {
        match self {
            Self { volumes: false, .. } => None,
            Self { mixture: true, .. } => {
                Some("the volumes are a mixture: a resync from another host, or a restore, was cut off")
            }
            Self { between_sessions: true, .. } => {
                Some("the volumes were being made equal to another host's when the log ended")
            }
            Self { damaged: true, .. } => {
                Some("the volumes may have what was done after that checkpoint, and cannot be taken back to it")
            }
            Self { overtaken: true, .. } => {
                Some("the VM went on here without its log: the volumes have what it did then, and cannot be taken back")
            }
            Self { perhaps_overtaken: true, .. } => Some(
                "the witness's record is not the first after those that this log knows: the VM may have gone on here without its log before \
                 another host had it, and the volumes may have what it did then",
            ),
            _ => None,
        }
    }
}

/// Whether the VM went on *here* after its log had ended, as far as is known. `newest` is a term that the witness has held, as the log knows: a
/// record of an older one shows nothing but that the witness cannot be believed.
fn overtaken(standing: &LogStanding, newest: Term, me: &HostName, held: &Held) -> bool {
    let invalidated = |record: &Record| record.primary == *me && record.term >= newest && !standing.allows(record, me);
    standing.behind || matches!(held, Ok(Some(record)) if invalidated(record))
}

/// Whether it may have, and another host has had it since: the log's disk failed so that it could not be noted, and the witness was told. That was a
/// record that the log does not know, and the other host's came after that. The first record after one that is known, or after one that was asked for
/// and not granted, leaves no room for it. `newest` is the newest term that the log knows.
fn perhaps_overtaken(standing: &LogStanding, newest: Term, me: &HostName, held: &Held) -> bool {
    let known = standing.proposed.iter().map(|record| record.term).fold(newest, Term::max);
    matches!(held, Ok(Some(record)) if record.term > known.next() && !standing.allows(record, me))
}

/// Why another state of the VM is, or may be, newer than the log's end; none: nothing was let go that is not in it.
fn newer(standing: &LogStanding, newest: Term, me: &HostName, held: &Held) -> Option<String> {
    match held {
        _ if overtaken(standing, newest, me, held) => Some("the VM went on here without its log".into()),
        Err(why) => Some(format!("{UNKNOWN}: {why}")),
        Ok(None) => Some(format!("{UNKNOWN}: the witness has no record of it")),
        Ok(Some(record)) if standing.allows(record, me) => None,
        Ok(Some(record)) if record.term < newest => {
            Some(format!("the witness's record (term {}) is older than the log: it cannot be believed", record.term))
        }
        Ok(Some(record)) => Some(format!("{} has had the VM since (term {})", record.primary, record.term)),
    }
}

fn loaded(
    config: &KeeperConfig,
    into: &Place,
    record: Option<Record>,
    is_wanted: &dyn Fn() -> bool,
    kept: Kept,
) -> Result<Loaded, String> {
    let unused = into.disks.unused();
    let begun = Instant::now();
    let back = look(config, &into.disks)?;
    // Dropped before what has the directory locked: nobody else's note goes with it.
    let note = kept;
    if let Some(why) = tell(&back, config, &into.disks, &Ok(record)).refused {
        return Err(why);
    }
    back.verify().map_err(|e| report(&e))?;
    let still = || if is_wanted() { unused.check() } else { Err("it is not wanted any more".to_owned()) };
    still()?;
    note.note()?;
    back.sync().map_err(|e| report(&e))?;
    let health = back.output(HEALTH).to_vec();
    let mut hello = back.hello().clone();
    hello.health = shared::heard(&health).unwrap_or(hello.health);
    let (mut machine, ports, _) = recovery::prepare(&mut hello, config, into)?;
    still()?;
    let load = |sink: &mut standby::Fresh, volumes: PlayVolume<'_>| back.load(&|block| block == 0, sink, volumes);
    let held = recovery::play(&load, &machine, &unused, into)?;
    machine.load(&held.device_state).map_err(|e| report(&e))?;
    let load_us = crate::primary::capture::micros(begun.elapsed());
    let spec = hello.spec.as_booted(&config.vm);
    let (epoch, health) = (held.committed.at.epoch, hello.health);
    let (tracker, history, logged, stopped) = (None, None, false, None);
    Ok(Loaded { machine, ports, spec, epoch, health, load_us, tracker, history, logged, stopped })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use ninefold_machine::BlockLayout;
    use ninefold_model::{Backup, Epoch};
    use ninefold_replica::stream::Hello;
    use ninefold_snapshot::log::{At, New, Options};

    use super::*;
    use crate::durable::log::job::Job;
    use crate::durable::log::{self, Beginning, Settings};
    use crate::primary::capture::{Capture, Taken};
    use crate::primary::waker::Waker;

    /// Only so that a failure ends.
    const END: Duration = Duration::from_secs(60);

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn record(term: u64, primary: &str, backup: Option<&str>) -> Record {
        let backups = backup.map(|name| Backup { host: host(name), session: Term(5) });
        Record { term: Term(term), primary: host(primary), backups: backups.into_iter().collect() }
    }

    fn config(me: &str, other: &str, dir: &Path) -> Arc<KeeperConfig> {
        let config = serde_json::json!({
            "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db",
            "hardware": { "memory_mib": 64, "boot": "boot_sector" },
            "host": {
                "name": me, "image": "/x", "run_dir": dir, "pool": dir, "listen": "10.8.0.1:7701", "security": "plain_text"
            },
            "policy": {
                "peers": [{ "host": other, "addr": "10.8.0.2:7701" }], "witness": { "host": "w", "addr": "10.8.0.3:7700" }
            }
        });
        Arc::new(serde_json::from_value(config).unwrap())
    }

    /// The VM of a's first term.
    fn hello(config: &KeeperConfig) -> Hello {
        Hello { spec: config.vm.clone(), ..crate::hello::hello(1, 4096) }
    }

    fn told(config: Arc<KeeperConfig>) -> LogReport {
        let (reply, answer) = channel();
        ask(config, Arc::new(Disks::default()), Ok(None), reply).unwrap();
        match answer.recv_timeout(END).unwrap() {
            Ok(Answer::Log { report }) => *report,
            other => panic!("{other:?}"),
        }
    }

    /// Of two logs, when the witness has lost its register, the one of the host that went on alone is the newer: that host had the VM in its first
    /// term all the time, and the other was bound in a later one, and lost after that.
    #[test]
    fn a_primary_that_went_on_alone_has_a_later_term_than_the_backup_that_it_lost() {
        let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (config("a", "b", dir_a.path()), config("b", "a", dir_b.path()));
        let (core, heard) = channel();
        let settings = Settings::of(&a, Arc::new(Disks::default()), Waker::new().unwrap(), core);
        let standing = LogStanding::new(LogRole::Primary { record: record(1, "a", None) });
        let beginning = Beginning::New { hello: Box::new(hello(&a)), standing };
        let handle = log::start(1, Term(1), beginning, settings).unwrap();
        let checkpoint = |epoch| {
            let mut capture = Box::new(Capture::for_layout(&BlockLayout { blocks: Vec::new() }).unwrap());
            (capture.epoch, capture.devices) = (Epoch(epoch), vec![1]);
            let taken = Arc::new(Taken::new(capture, channel().0, Waker::new().unwrap()));
            handle.jobs.send(Job::Checkpoint { taken, join: None }).unwrap();
            loop {
                match heard.recv_timeout(END).unwrap() {
                    Msg::LogHolds { epoch: durable, .. } => break assert_eq!(durable, Epoch(epoch)),
                    Msg::LogFailed { failure, .. } => panic!("{}", failure.reason),
                    _ => {}
                }
            }
        };
        checkpoint(1);
        // It has bound b; b has been lost.
        handle.term(Term(2));
        checkpoint(500);
        handle.term(Term(3));
        checkpoint(100_000);
        drop(handle);

        let role = LogRole::Backup { session: Term(1), primary: host("a") };
        let mut new = New::create(
            place::open(&place::place(&b)).unwrap(),
            hello(&b),
            &LogStanding::new(role),
            Options::default(),
        )
        .unwrap();
        let mut commit = new.first(At { session: Term(1), epoch: Epoch(500), term: Term(2) }).unwrap();
        commit.device_state(&[1]).unwrap();
        commit.finish().unwrap();
        let log = new.publish().unwrap();
        drop(log.folder().unwrap());
        drop(log);

        let (a, b) = (told(a), told(b));
        assert_eq!((a.term, a.epoch, b.term, b.epoch), (Term(3), Epoch(100_000), Term(2), Epoch(500)));
    }

    /// The primary binds a backup, or loses it, between two commits.
    #[test]
    fn a_log_is_of_the_newest_term_that_it_has_noted() {
        let standing = LogStanding::new(LogRole::Primary { record: record(2, "a", Some("b")) });
        assert_eq!(newest_term(Term(1), &standing, true), Term(2));
        assert_eq!(newest_term(Term(3), &standing, true), Term(3));
        // What was noted is of its end, and the checkpoint comes before that.
        assert_eq!(newest_term(Term(1), &standing, false), Term(1));
    }

    #[test]
    fn it_is_said_who_may_have_more() {
        let (a, b) = (host("a"), host("b"));
        let primary = LogStanding::new(LogRole::Primary { record: record(5, "a", None) });
        let held = |record| Ok(Some(record));
        assert_eq!(newer(&primary, Term(5), &a, &held(record(5, "a", None))), None);
        let say = |standing: &LogStanding, me, held: Held| newer(standing, Term(5), me, &held).unwrap();
        assert!(say(&primary, &a, held(record(7, "b", None))).contains("b has had the VM since (term 7)"));
        assert!(say(&primary, &a, held(record(6, "a", None))).contains("went on here without its log"));
        assert!(say(&primary, &a, held(record(4, "a", None))).contains("is older than the log"));
        assert!(say(&primary, &a, Ok(None)).contains("no record"));
        assert!(say(&primary, &a, Err("no route".into())).contains("not known: no route"));
        let backup = LogStanding::new(LogRole::Backup { session: Term(5), primary: a.clone() });
        assert_eq!(newer(&backup, Term(6), &b, &held(record(6, "a", Some("b")))), None);
        assert!(say(&backup, &b, held(record(6, "a", None))).contains("a has had the VM since"));
        assert!(say(&backup, &b, held(record(4, "a", None))).contains("is older than the log"));
        // Its last commit says a newer term than its role.
        let old = newer(&backup, Term(7), &b, &held(record(6, "a", None))).unwrap();
        assert!(old.contains("is older than the log"), "{old}");
        let behind = LogStanding { behind: true, ..primary };
        assert!(say(&behind, &a, held(record(5, "a", None))).contains("went on here without its log"));
    }

    /// a's log fails and cannot note it; the witness invalidates it, and a goes on, alone; b becomes its backup, and takes over. The record names b, as if
    /// b had come directly after what the log knows.
    #[test]
    fn another_hosts_record_does_not_hide_that_the_vm_went_on_here() {
        let a = host("a");
        let mut log = LogStanding::new(LogRole::Primary { record: record(5, "a", None) });
        let may =
            |log: &LogStanding, newest, record| perhaps_overtaken(log, Term(newest), &host("a"), &Ok(Some(record)));
        // The invalidation is the record of term 6, b is bound in 7 and wins 8; or nobody has invalidated anything, and b was bound in 5.
        assert!(may(&log, 5, record(8, "b", None)));
        assert!(may(&log, 5, record(7, "b", None)));
        assert!(!may(&log, 5, record(6, "b", None)));
        assert!(!may(&log, 5, record(5, "a", None)));
        // What it has asked for may have been granted: it is known, and the next is not.
        log.propose(record(6, "a", Some("b")));
        assert!(!may(&log, 5, record(7, "b", None)));
        assert!(!may(&log, 5, record(6, "a", Some("b"))));
        assert!(may(&log, 5, record(8, "b", None)));
        // A backup's: its commits say what bound it. It was started by force since, perhaps.
        let backup = LogStanding::new(LogRole::Backup { session: Term(5), primary: host("b") });
        assert!(!may(&backup, 9, record(10, "b", None)));
        assert!(may(&backup, 9, record(11, "b", None)));
        assert!(!may(&backup, 9, record(12, "b", Some("a"))), "it is bound still");
        // What is not known is said, and no more is.
        assert!(
            !perhaps_overtaken(&log, Term(5), &a, &Ok(None))
                && !perhaps_overtaken(&log, Term(5), &a, &Err("no".into()))
        );
        assert!(newer(&log, Term(6), &a, &Ok(None)).unwrap().contains("or this one without its log"));
    }

    /// Memory and volumes are one checkpoint: whatever may have taken the images beyond it is a refusal, and nothing is without them.
    #[test]
    fn images_that_may_be_beyond_the_checkpoint_are_a_refusal() {
        let good = Images {
            volumes: true,
            damaged: false,
            between_sessions: false,
            overtaken: false,
            perhaps_overtaken: false,
            mixture: false,
        };
        assert_eq!(good.refusal(), None);
        let bad = [
            Images { damaged: true, ..good },
            Images { between_sessions: true, ..good },
            Images { overtaken: true, ..good },
            Images { perhaps_overtaken: true, ..good },
            Images { mixture: true, ..good },
        ];
        for state in bad {
            assert!(state.refusal().is_some(), "{state:?}");
            assert_eq!(Images { volumes: false, ..state }.refusal(), None);
        }
    }
}
