//! The second act: PostgreSQL on a replicated volume, some persistent connections; then everything loses its power.

use super::act::{Show, in_lab, ms};
use super::power::lose_power;
use super::report::DatabaseReport;
use super::{Act, Audience, Step};
use crate::boot::VmOptions;
use crate::config::LabConfig;
use crate::error::LabError;
use crate::ledger::{LedgerOptions, SqlLedger};
use crate::topology::CLIENT;

/// Transactions that the client must have got acknowledged before a fault, and again after it.
const ANSWERS: u64 = 60;

/// Plays it: `failovers`, in turns, and, if asked for, the loss of power. The lab is gone when this returns, also with an
/// error.
///
/// # Errors
/// When something did not come to its end. What was lost or broken is no error: the report says it.
pub fn play(
    lab: &LabConfig,
    vm: &VmOptions,
    failovers: u32,
    power_loss: bool,
    audience: &mut dyn Audience,
) -> Result<DatabaseReport, LabError> {
    audience.hear(Step::Act(Act::Database));
    in_lab(lab, audience, |lab, audience| {
        let mut show = Show::begin(lab, vm, ANSWERS, audience)?;
        let service = vm.guest.service();
        let mut ledger = SqlLedger::start(Some(&lab.netns(CLIENT)?), service, &LedgerOptions::default())?;
        let sent: Vec<_> =
            show.failovers(failovers, ledger.pulse(), audience)?.iter().map(|r| r.volume_bytes).collect();
        show.collect()?;
        let mut report = DatabaseReport {
            volume_bytes: vm.volumes.iter().map(|v| v.size).sum(),
            resync_bytes: sent.iter().sum(),
            resyncs_bytes: sent,
            ..DatabaseReport::default()
        };
        if power_loss {
            let by_itself = vm.non_volatile.is_some();
            // Connections that end with their VM do not count; those of a VM that goes on do.
            show.report.connections_reset = if by_itself { 0 } else { ledger.pulse().resets() };
            let lost = lose_power(&mut show, ledger, by_itself, service, audience)?;
            report.power_loss_recovery_ms = ms(lost.recovery);
            report.power_loss_under_way = lost.under_way;
            report.power_loss_by_itself = by_itself;
            report.power_loss_unsynced_dropped = lab.record().disks;
            ledger = lost.ledger;
        }
        let done = ledger.finish()?;
        show.report.connections_reset += done.resets;
        show.report.complaints = done.complaints;
        report.transactions_acked = done.acked;
        report.transactions_lost = done.lost + done.repeated;
        let resets = show.report.connections_reset;
        let (acked, lost) = (report.transactions_acked, report.transactions_lost);
        audience.hear(Step::Verified { act: Act::Database, acked, lost, resets });
        report.act = show.end();
        Ok(report)
    })
}
