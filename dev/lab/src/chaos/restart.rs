//! A VM that nobody holds any more is started again from its volumes, as an operator would: plainly, and, where that is refused, by force on
//! a host that must have all that its clients were told.

use std::time::{Duration, Instant};

use ninefold_control::ClientError;
use ninefold_control::Request;
use ninefold_model::HostName;

use super::judge::{Fact, Start, may_lack, whole_on_disk};
use super::plan::Subject;
use crate::error::LabError;
use crate::lab::Lab;

/// How long keepers may take to hear of the witness: until then they refuse to start anything.
const WITNESS: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// How it went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Again {
    /// It runs there.
    Started { host: HostName, start: Start },
    /// Nobody would start it plainly, and nobody has to have all of it: so it may have to be.
    Refused(String),
    /// It has to be on that host, which refuses all the same.
    Withheld(String),
}

/// Tries the hosts in turn, those first that need not have all of it: a host that is behind must refuse.
pub(super) fn start_again(lab: &Lab, subject: Subject, facts: &[Fact]) -> Result<Again, LabError> {
    await_witness(lab)?;
    let durable = subject.is_durable();
    let whole = whole_on_disk(facts);
    let mut hosts = lab.topology().hosts.clone();
    hosts.sort_by_key(|h| whole.contains(h));
    let mut refusals = Vec::new();
    for host in &hosts {
        match start(lab, host, false)? {
            None => return Ok(Again::Started { host: host.clone(), start: Start::Plain }),
            Some(why) => refusals.push(format!("{host}: {why}")),
        }
    }
    // What a person who knows that no host runs it any more would do.
    let Some(host) = hosts.iter().find(|h| !may_lack(Start::Forced, h, durable, facts)) else {
        return Ok(Again::Refused(refusals.join("; ")));
    };
    Ok(match start(lab, host, true)? {
        None => Again::Started { host: host.clone(), start: Start::Forced },
        Some(why) => Again::Withheld(format!("{host} has all of it, and refuses: {why}")),
    })
}

/// Why it is refused.
fn start(lab: &Lab, host: &HostName, force: bool) -> Result<Option<String>, LabError> {
    match lab.keeper(host.as_str())?.carry_out(&Request::Start { force }).map(drop) {
        Ok(()) => Ok(None),
        Err(ClientError::Refused(refusal)) => Ok(Some(refusal.to_string())),
        Err(error) => Err(LabError::Host { host: host.to_string(), what: error.to_string() }),
    }
}

fn await_witness(lab: &Lab) -> Result<(), LabError> {
    let deadline = Instant::now() + WITNESS;
    let reached = |host: &HostName| {
        let status = lab
            .keeper(host.as_str())
            .and_then(|k| k.status().map_err(|e| LabError::Host { host: host.to_string(), what: e.to_string() }));
        status.is_ok_and(|s| s.witness_reachable)
    };
    while !lab.topology().hosts.iter().all(reached) {
        if Instant::now() > deadline {
            let what = "word of the witness at each host".into();
            return Err(LabError::Timeout { what, after: WITNESS, detail: lab.logs_for_error() });
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
