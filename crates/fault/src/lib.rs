//! Fault points: named places where a process can be told to die or to fail, so that a test reaches every step of what
//! must survive at every step, by order and not by luck.
//!
//! The environment variable `NINEFOLD_FAULTS`, read once, names them: `POINT[@N]=ACTION`, several separated by commas. The
//! action is taken when the point is passed for the Nth time (the first, unless said otherwise):
//!
//! * `abort`: the process ends at once, as by SIGKILL: nothing is cleaned up, nothing flushed.
//! * `panic`: the thread panics, as by a mistake in the program.
//! * `fail`: the step fails with an I/O error, this time. `fail*K`: K times in a row.
//!
//! All of this is behind the feature `points`, which tests have. Without it a point is nothing, and a program has neither the code nor the
//! names: [`COMPILED_IN`] says which. With it, and without the variable, a point costs one load and one branch. The points:
//!
//! | point | the next step is |
//! |---|---|
//! | `log.write` | to write one record of a committed epoch to a volume's write log |
//! | `log.sync` | to make them durable there |
//! | `log.synced` | to say that they are durable |
//! | `apply.op` | to write one operation of an epoch into the image |
//! | `apply.done` | to forget an epoch that is in the image |
//! | `image.flush` | to make the image durable |
//! | `log.clear` | to cut the log off |
//! | `log.cut` | to make that durable |
//! | `log.cleared` | to forget that there was a log |
//! | `log.unsure` | to make sure that a log that is empty is so on the disk |
//! | `recover.write` | to write what a log holds into the image |
//! | `recover.flush` | to make that durable |
//! | `note.create` | to make a note (`crates/volume/src/note.rs`) |
//! | `note.write` | to write it |
//! | `note.sync` | to make its content durable |
//! | `note.name` | to make its name durable |
//! | `note.remove` | to remove a note |
//! | `note.settle` | to make durable that it is there, or gone |
//! | `pool.staged` | to make the hidden directory of an object of a pool that is being made |
//! | `pool.lock` | to lock it |
//! | `pool.image` | to make its image |
//! | `pool.size` | to give the image its size |
//! | `pool.record` | to make a draft of an object's `volume.json` |
//! | `pool.record-write` | to write it |
//! | `pool.record-sync` | to make it durable |
//! | `pool.record-name` | to put it in the place of the one before |
//! | `pool.sync` | to make durable a file or the entries of a directory in a pool |
//! | `pool.publish` | to give an object its name |
//! | `pool.resize` | to give an image another size |
//! | `pool.resized` | to make that durable |
//! | `pool.remove` | to take an object's name away |
//! | `pool.clear` | to remove what it had |
//! | `storage.directory` | to make the directory of a checkpoint log, or that it is there durable |
//! | `storage.create` | to make a file of it |
//! | `storage.write` | to write to one |
//! | `storage.zero` | to make a part of one zero |
//! | `storage.cut` | to give one another length |
//! | `storage.sync-file` | to make what was written to one durable |
//! | `storage.rename` | to give one the name of another |
//! | `storage.remove` | to remove one |
//! | `storage.sync` | to make the names durable |
//! | `snapshot.staged` | to make the hidden file of a snapshot |
//! | `snapshot.lock` | to lock it |
//! | `snapshot.sync` | to make it durable |
//! | `snapshot.publish` | to give it its name |
//! | `snapshot.remove` | to remove a snapshot |
//! | `snapshot.name` | to make a name, or that it is gone, durable |
//! | `resync.answer` | (backup) to compare the primary's checksums |
//! | `resync.apply` | (backup) to write a piece of a resync into the image |
//! | `resync.ask` | (primary) to ask for a comparison |
//! | `resync.send` | (primary) to send a piece |
//! | `resync.round` | (primary) to end a round |
//! | `receive.epoch` | (backup) to take over a whole checkpoint's writes |
//! | `restore.volume` | to make a volume what a snapshot holds |

use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable's name.
pub const VARIABLE: &str = "NINEFOLD_FAULTS";

/// The points, as in the table of this module.
pub const POINTS: [&str; 54] = [
    "log.write",
    "log.sync",
    "log.synced",
    "apply.op",
    "apply.done",
    "image.flush",
    "log.clear",
    "log.cut",
    "log.cleared",
    "log.unsure",
    "recover.write",
    "recover.flush",
    "note.create",
    "note.write",
    "note.sync",
    "note.name",
    "note.remove",
    "note.settle",
    "pool.staged",
    "pool.lock",
    "pool.image",
    "pool.size",
    "pool.record",
    "pool.record-write",
    "pool.record-sync",
    "pool.record-name",
    "pool.sync",
    "pool.publish",
    "pool.resize",
    "pool.resized",
    "pool.remove",
    "pool.clear",
    "storage.directory",
    "storage.create",
    "storage.write",
    "storage.zero",
    "storage.cut",
    "storage.sync-file",
    "storage.rename",
    "storage.remove",
    "storage.sync",
    "snapshot.staged",
    "snapshot.lock",
    "snapshot.sync",
    "snapshot.publish",
    "snapshot.remove",
    "snapshot.name",
    "resync.answer",
    "resync.apply",
    "resync.ask",
    "resync.send",
    "resync.round",
    "receive.epoch",
    "restore.volume",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Abort,
    Panic,
    Fail { times: u64 },
}

#[derive(Debug)]
struct Fault {
    point: String,
    /// The passing at which it happens first, from 1 on.
    first: u64,
    action: Action,
    passed: AtomicU64,
}

/// What a process is to suffer, and where.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

/// Why a text names no faults.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFault {
    #[error("'{0}' is not POINT[@N]=abort, POINT[@N]=panic or POINT[@N]=fail[*K]")]
    Form(String),
    #[error("there is no fault point '{name}'; there are {}", POINTS.join(", "))]
    Point { name: String },
}

/// Whether this program has fault points.
pub const COMPILED_IN: bool = cfg!(feature = "points");

/// What a program that has fault points says behind its version.
pub const IN_VERSION: &str = "with fault points";

/// Reads the environment now, so that what is wrong there is said; answers whether there are any faults. A program without fault
/// points does not look.
///
/// # Errors
/// What is wrong with the variable, for a person.
#[inline(always)]
pub fn read_environment() -> Result<bool, String> {
    live::read_environment()
}

/// A process passes the point `name`.
///
/// # Errors
/// If it is told to fail here.
#[inline(always)]
pub fn point(name: &str) -> io::Result<()> {
    live::point(name)
}

/// A point is nothing.
#[cfg(not(feature = "points"))]
mod live {
    use std::io;

    #[inline(always)]
    pub(super) fn read_environment() -> Result<bool, String> {
        Ok(false)
    }

    #[inline(always)]
    pub(super) fn point(_: &str) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "points")]
mod live {
    use super::{Faults, InvalidFault, VARIABLE};
    use std::io;
    use std::sync::OnceLock;

    static FAULTS: OnceLock<Faults> = OnceLock::new();

    pub(super) fn read_environment() -> Result<bool, String> {
        let faults: Result<Faults, InvalidFault> = std::env::var(VARIABLE).unwrap_or_default().parse();
        let faults = faults.map_err(|error| format!("{VARIABLE}: {error}"))?;
        Ok(!FAULTS.get_or_init(|| faults).0.is_empty())
    }

    pub(super) fn point(name: &str) -> io::Result<()> {
        let faults = FAULTS.get_or_init(|| {
            let faults = std::env::var(VARIABLE).unwrap_or_default().parse();
            // Who asks for faults that there are none of has asked for something else than what would happen.
            faults.unwrap_or_else(|error: InvalidFault| panic!("{VARIABLE}: {error}"))
        });
        faults.pass(name)
    }
}

impl Faults {
    /// Passes the point `name`.
    ///
    /// # Errors
    /// If it is to fail this time.
    pub fn pass(&self, name: &str) -> io::Result<()> {
        for fault in self.0.iter().filter(|fault| fault.point == name) {
            let passing = fault.passed.fetch_add(1, Ordering::SeqCst) + 1;
            match fault.action {
                Action::Abort if passing == fault.first => std::process::abort(),
                Action::Panic if passing == fault.first => panic!("fault point {name}, passing {passing}"),
                Action::Fail { times } if (fault.first..fault.first.saturating_add(times)).contains(&passing) => {
                    return Err(io::Error::other(format!("fault point {name}, passing {passing}")));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl FromStr for Faults {
    type Err = InvalidFault;

    fn from_str(text: &str) -> Result<Self, InvalidFault> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let one = |word: &str| {
            let fault = parse(word).ok_or_else(|| InvalidFault::Form(word.chars().take(64).collect()))?;
            let known = POINTS.contains(&fault.point.as_str());
            known.then_some(()).ok_or_else(|| InvalidFault::Point { name: fault.point.clone() })?;
            Ok(fault)
        };
        words.map(one).collect::<Result<_, _>>().map(Faults)
    }
}

fn parse(word: &str) -> Option<Fault> {
    let (place, action) = word.split_once('=')?;
    let (point, first) = match place.split_once('@') {
        Some((point, n)) => (point, n.parse().ok().filter(|n| *n > 0)?),
        None => (place, 1),
    };
    let action = match action.split_once('*') {
        None if action == "abort" => Action::Abort,
        None if action == "panic" => Action::Panic,
        None if action == "fail" => Action::Fail { times: 1 },
        Some(("fail", times)) => Action::Fail { times: times.parse().ok()? },
        _ => return None,
    };
    Some(Fault { point: point.to_owned(), first, action, passed: AtomicU64::new(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_fails_when_it_was_told_to() {
        let faults: Faults = "log.write@2=fail*2, apply.op=fail".parse().unwrap();
        let outcomes = |name| (0..4).map(|_| faults.pass(name).is_ok()).collect::<Vec<_>>();
        assert_eq!(outcomes("log.write"), [true, false, false, true]);
        assert_eq!(outcomes("apply.op"), [false, true, true, true]);
        assert_eq!(outcomes("log.sync"), [true; 4]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!("".parse::<Faults>().unwrap().0.is_empty());
        for bad in ["log.sync", "log.sync=", "=fail", "log.sync=die", "log.sync@0=fail", "log.sync@x=fail"] {
            assert!(bad.parse::<Faults>().is_err(), "{bad}");
        }
        for bad in ["log.sync=fail*", "log.sync=abort*2", "log.sync=fail,b"] {
            assert!(matches!(bad.parse::<Faults>(), Err(InvalidFault::Form(_))), "{bad}");
        }
        assert_eq!("log.snyc=fail".parse::<Faults>().unwrap_err(), InvalidFault::Point { name: "log.snyc".into() });
    }

    /// The table is the documentation.
    #[test]
    fn every_point_is_described() {
        let text = include_str!("lib.rs");
        for point in POINTS {
            assert!(text.contains(&format!("//! | `{point}` |")), "{point}");
        }
    }
}
