//! The first act: redis in memory, one TCP connection.

use ninefold_model::status::MachineStatus;

use super::act::{Show, in_lab};
use super::report::ActReport;
use super::{Act, Audience, Step};
use crate::boot::{VmOptions, redis};
use crate::config::LabConfig;
use crate::error::LabError;
use crate::ledger::{Ledger, LedgerOptions};
use crate::topology::CLIENT;

/// Answers that the client must have got before a fault, and again after it.
const ANSWERS: u64 = 300;

/// What came of it.
#[derive(Debug, Clone)]
pub struct RedisReport {
    pub act: ActReport,
    pub acked_writes: u64,
    /// Acknowledged writes that are not there at the end or were carried out twice.
    pub acked_writes_lost: u64,
    pub machine: MachineStatus,
}

/// Plays it. The lab is gone when this returns, also with an error.
///
/// # Errors
/// When something did not come to its end. What was lost or broken is no error: the report says it.
pub fn play(
    lab: &LabConfig,
    vm: &VmOptions,
    failovers: u32,
    audience: &mut dyn Audience,
) -> Result<RedisReport, LabError> {
    audience.hear(Step::Act(Act::Redis));
    in_lab(lab, audience, |lab, audience| {
        let mut show = Show::begin(lab, vm, ANSWERS, audience)?;
        let ledger = Ledger::start(Some(&lab.netns(CLIENT)?), redis(), &LedgerOptions::default())?;
        show.failovers(failovers, ledger.pulse(), audience)?;
        show.collect()?;
        let written = ledger.finish()?;
        show.report.connections_reset = written.resets;
        show.report.complaints = written.complaints;
        let (acked, lost) = (written.acked, written.lost + written.repeated);
        audience.hear(Step::Verified { act: Act::Redis, acked, lost, resets: written.resets });
        let machine = show.machine.clone();
        Ok(RedisReport { act: show.end(), acked_writes: acked, acked_writes_lost: lost, machine })
    })
}
