//! The whole lab loses its power while the database works, and comes back.
//!
//! A non-volatile VM goes on by itself, from the last checkpoint in its log, on whichever host may; its client's connections
//! live. Any other VM is lost with its hosts, but not what it acknowledged, if its volumes acknowledge on disk: a person (here: this
//! module) starts it again, where its backup was (where it ran, if it had none at that moment), and the client connects anew.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ninefold_control::Request;
use ninefold_model::event::{Event, EventKind};
use ninefold_model::order::in_order;

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
    pub under_way: u64,
}

/// Who had the VM when the power went.
struct Last {
    primary: String,
    backup: String,
    protected: bool,
}

impl Last {
    fn of(events: Vec<Event>) -> Option<Self> {
        let mut last: Option<Self> = None;
        for event in in_order(events) {
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
    by_itself: bool,
    service: SocketAddr,
    audience: &mut dyn Audience,
) -> Result<PowerLoss, LabError> {
    let lab = show.lab;
    audience.hear(Step::Writing { acked: ledger.pulse().acked() });
    lab.power_loss()?;
    let (acked, under_way) = (ledger.pulse().acked(), ledger.under_way());
    audience.hear(Step::PowerLost { acked, under_way, unsynced_dropped: lab.record().disks });

    let mark = show.booted.events.mark();
    let begin = Instant::now();
    lab.power_on()?;
    audience.hear(Step::PowerOn { took: begin.elapsed() });
    let ledger = match by_itself {
        true => {
            let recovered = show.event(mark, "recovery", |e| matches!(e.kind, EventKind::Recovered { .. }))?;
            show.now_on(recovered.host.as_str());
            ledger
        }
        false => start_again(show, ledger, service, begin)?,
    };
    if !ledger.pulse().wait_total(acked + 1, begin + PATIENCE) {
        return Err(show.timeout("transaction after the loss of power"));
    }
    let recovery = begin.elapsed();
    show.report.path.push(show.primary.clone());
    audience.hear(Step::Recovered { host: show.primary.clone(), by_itself, recovery });
    show.reprotected(mark, begin, audience)?;
    show.answers(ledger.pulse())?;
    show.collect()?;
    Ok(PowerLoss { ledger, recovery, under_way })
}

/// Starts the VM where its backup was, and has the client go on.
fn start_again(
    show: &mut Show<'_>,
    ledger: SqlLedger,
    service: SocketAddr,
    begin: Instant,
) -> Result<SqlLedger, LabError> {
    let book = ledger.cut();
    // Where its backup was, or, if it had none at that moment, where it ran.
    let last = Last::of(show.booted.events.all());
    (show.primary, show.backup) = last.ok_or_else(|| show.timeout("word of who had the VM"))?.order();
    show.lab.ask(&show.primary, &Request::Start { force: true })?;
    let netns = show.lab.netns(CLIENT)?;
    if !sql::await_answer(&netns, service, begin + PATIENCE)? {
        return Err(show.timeout("answer of the database after the loss of power"));
    }
    SqlLedger::resume(book, Some(&netns), service, &LedgerOptions::default())
}
