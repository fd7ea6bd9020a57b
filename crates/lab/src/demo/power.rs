//! The whole lab loses its power while the database works, and comes back.
//!
//! The VM itself is lost with its hosts; what it acknowledged is on a disk, because its volume acknowledges on disk. A
//! person (here: this module) starts it again, where its backup was: that image holds every acknowledged write. A VM that had
//! no backup at that moment is started where it ran.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ninefold_model::control::Request;
use ninefold_model::event::{Event, EventKind};

use super::act::{PATIENCE, Show};
use super::{Audience, Step};
use crate::error::LabError;
use crate::ledger::{LedgerOptions, SqlLedger, sql};
use crate::topology::CLIENT;

/// What came of it.
pub(super) struct PowerLoss {
    /// Goes on with the same book.
    pub ledger: SqlLedger,
    /// From the return of the power to the first acknowledged transaction.
    pub recovery: Duration,
    /// Transactions that were under way.
    pub doubtful: u64,
}

/// Who had the VM when the power went.
struct Last {
    primary: String,
    backup: String,
    protected: bool,
}

impl Last {
    fn of(mut events: Vec<Event>) -> Option<Self> {
        events.sort_by_key(|e| e.monotonic_us);
        let mut last: Option<Self> = None;
        for event in events {
            let host = event.host.to_string();
            match event.kind {
                EventKind::Booted { .. } | EventKind::TookOver { .. } => {
                    let backup = last.map(|l| if l.primary == host { l.backup } else { l.primary }).unwrap_or_default();
                    last = Some(Self { primary: host, backup, protected: false });
                }
                EventKind::Protected { backup, .. } => {
                    last = Some(Self { primary: host, backup: backup.to_string(), protected: true });
                }
                EventKind::BackupLost { .. } | EventKind::Unprotected { .. } => {
                    last.iter_mut().for_each(|l| l.protected = false);
                }
                _ => {}
            }
        }
        last
    }

    /// The host on which to start it, and the other.
    fn order(self) -> (String, String) {
        if self.protected { (self.backup, self.primary) } else { (self.primary, self.backup) }
    }
}

/// Cuts the power of both hosts and the witness, whatever they are doing, gives it back, and has the database go on.
pub(super) fn lose_power(
    show: &mut Show<'_>,
    ledger: SqlLedger,
    service: SocketAddr,
    audience: &mut dyn Audience,
) -> Result<PowerLoss, LabError> {
    let lab = show.lab;
    audience.hear(Step::Writing { acked: ledger.pulse().acked() });
    lab.power_loss()?;
    let book = ledger.cut();
    let doubtful = book.doubtful();
    audience.hear(Step::PowerLost { acked: book.acked(), doubtful, unsynced_dropped: lab.record().disks });

    let mark = show.booted.events.mark();
    let begin = Instant::now();
    lab.power_on()?;
    // The VM goes on where its backup was, or, if it had none at that moment, where it ran.
    let last = Last::of(show.booted.events.all());
    (show.primary, show.backup) = last.ok_or_else(|| show.timeout("word of who had the VM"))?.order();
    lab.ask(&show.primary, &Request::Start { force: true })?;
    show.report.path.push(show.primary.clone());
    audience.hear(Step::PowerOn { host: show.primary.clone(), took: begin.elapsed() });

    let netns = lab.netns(CLIENT)?;
    if !sql::await_answer(&netns, service, begin + PATIENCE)? {
        return Err(show.timeout("answer of the database after the loss of power"));
    }
    let ledger = SqlLedger::resume(book, Some(&netns), service, &LedgerOptions::default())?;
    if !ledger.pulse().wait_acks(1, begin + PATIENCE) {
        return Err(show.timeout("transaction after the loss of power"));
    }
    let recovery = begin.elapsed();
    audience.hear(Step::Recovered { recovery });
    show.reprotected(mark, begin, audience)?;
    show.answers(ledger.pulse())?;
    show.collect()?;
    Ok(PowerLoss { ledger, recovery, doubtful })
}
