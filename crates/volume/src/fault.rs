//! Fault points: named places where a process can be told to die or to fail, so that a test reaches every step of what
//! must survive at every step, by order and not by luck.
//!
//! The environment variable `NINEFOLD_FAULTS`, read once, names them: `POINT[@N]=ACTION`, several separated by commas. The
//! action is taken when the point is passed for the Nth time (the first, unless said otherwise):
//!
//! * `abort`: the process ends at once, as by SIGKILL: nothing is cleaned up, nothing flushed.
//! * `fail`: the step fails with an I/O error, this time. `fail*K`: K times in a row.
//!
//! Without the variable a point costs one load and one branch. The points:
//!
//! | point | the next step is |
//! |---|---|
//! | `log.write` | to append committed epochs to a volume's write log |
//! | `log.sync` | to make them durable there |
//! | `log.synced` | to say that they are durable |
//! | `apply.op` | to write one operation of an epoch into the image |
//! | `apply.done` | to forget an epoch that is in the image |
//! | `image.flush` | to make the image durable |
//! | `log.clear` | to empty the log |
//! | `log.cleared` | to forget that there was a log |
//! | `recover.write` | to write what a log holds into the image |
//! | `recover.flush` | to make that durable |
//! | `resync.answer` | (backup) to compare the primary's checksums |
//! | `resync.apply` | (backup) to write a piece of a resync into the image |
//! | `resync.ask` | (primary) to ask for a comparison |
//! | `resync.send` | (primary) to send a piece |
//! | `resync.round` | (primary) to end a round |
//! | `receive.epoch` | (backup) to take over a whole checkpoint's writes |

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable's name.
pub const VARIABLE: &str = "NINEFOLD_FAULTS";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Abort,
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

static FAULTS: OnceLock<Vec<Fault>> = OnceLock::new();

/// A process passes the point `name`.
///
/// # Errors
/// If it is told to fail here.
pub fn point(name: &str) -> io::Result<()> {
    let faults = FAULTS.get_or_init(|| {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        // Whoever asks for faults wants to know that there are none.
        parse(&text).unwrap_or_else(|bad| panic!("{VARIABLE}: '{bad}' is not POINT[@N]=abort or POINT[@N]=fail[*K]"))
    });
    if faults.is_empty() { Ok(()) } else { pass(faults, name) }
}

fn pass(faults: &[Fault], name: &str) -> io::Result<()> {
    for fault in faults.iter().filter(|fault| fault.point == name) {
        let passing = fault.passed.fetch_add(1, Ordering::SeqCst) + 1;
        match fault.action {
            Action::Abort if passing == fault.first => std::process::abort(),
            Action::Fail { times } if (fault.first..fault.first.saturating_add(times)).contains(&passing) => {
                return Err(io::Error::other(format!("fault point {name}, passing {passing}")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Vec<Fault>, String> {
    let one = |word: &str| {
        let (place, action) = word.split_once('=')?;
        let (point, first) = match place.split_once('@') {
            Some((point, n)) => (point, n.parse().ok().filter(|n| *n > 0)?),
            None => (place, 1),
        };
        let action = match action.split_once('*') {
            None if action == "abort" => Action::Abort,
            None if action == "fail" => Action::Fail { times: 1 },
            Some(("fail", times)) => Action::Fail { times: times.parse().ok()? },
            _ => return None,
        };
        Some(Fault { point: point.to_owned(), first, action, passed: AtomicU64::new(0) })
    };
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| one(word).ok_or_else(|| word.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_fails_when_it_was_told_to() {
        let faults = parse("a@2=fail*2, b=fail").unwrap();
        let outcomes = |name| (0..4).map(|_| pass(&faults, name).is_ok()).collect::<Vec<_>>();
        assert_eq!(outcomes("a"), [true, false, false, true]);
        assert_eq!(outcomes("b"), [false, true, true, true]);
        assert_eq!(outcomes("c"), [true; 4]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(parse("").unwrap().is_empty());
        for bad in ["a", "a=", "a=die", "a@0=fail", "a@x=fail", "a=fail*", "a=abort*2", "a=fail,b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
