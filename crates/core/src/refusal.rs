//! What the state machines refuse, as those are told who asked.

use ninefold_control::{Refusal, Work};
use ninefold_replica::protocol;

use crate::event::NotAsked;
use crate::policy;

/// Why the witness is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WitnessTrouble {
    /// It does not answer, for this reason.
    Silent(String),
    /// It answers, and cannot be believed, for this reason.
    Doubted(String),
}

impl WitnessTrouble {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Silent(reason) | Self::Doubted(reason) => reason,
        }
    }

    /// What those are told who need it.
    pub(crate) fn refusal(&self) -> Refusal {
        let reason = self.reason().to_owned();
        match self {
            Self::Silent(_) => Refusal::WitnessSilent { reason },
            Self::Doubted(_) => Refusal::WitnessDoubted { reason },
        }
    }
}

/// Why the VM is not started, as the witness's record is not to be had.
pub(crate) fn of_witness(why: &NotAsked) -> Refusal {
    match why {
        NotAsked::Silent(reason) => Refusal::WitnessSilent { reason: reason.clone() },
        NotAsked::Refuses(reason) => Refusal::WitnessDoubted { reason: format!("it refuses: {reason}") },
        // What this host asks for instead comes first: it goes on with the VM, or ends it.
        NotAsked::Superseded => Refusal::Busy { with: Work::Start },
    }
}

/// A refusal of the protocol's.
pub(crate) fn of_protocol(refused: protocol::Refused) -> Refusal {
    use protocol::Refused;
    match refused {
        Refused::NotHere => Refusal::NotRunningHere { host: None },
        Refused::Here => Refusal::RunsHere,
        Refused::Stopping => Refusal::Busy { with: Work::Stop },
        Refused::HandingOver => Refusal::Busy { with: Work::Switchover },
        Refused::NoBackup { named } => Refusal::NoBackup { host: named },
        Refused::JustTakenOver => Refusal::JustTakenOver,
        // Nobody but the host that had the VM last, alone, may start it without force.
        Refused::Held { record, me } => {
            let host = (record.is_alone() && record.primary != me).then(|| record.primary.clone());
            Refusal::HeldElsewhere { record, host }
        }
        silent @ Refused::LogSilent { .. } => Refusal::LogUnusable { reason: silent.to_string() },
        Refused::Doubted { reason } => Refusal::WitnessDoubted { reason },
        Refused::Overtaken => Refusal::Overtaken,
    }
}

/// A refusal of the policy's for the guest's images.
pub(crate) fn of_policy(refused: policy::Refused) -> Refusal {
    use policy::Refused;
    match refused {
        Refused::OnTrial => Refusal::Busy { with: Work::Trial },
        Refused::NothingOnTrial => Refusal::NothingOnTrial,
        Refused::Dumping => Refusal::Busy { with: Work::Dump },
        Refused::NoTime => {
            Refusal::BadRequest { field: Some("within_ms".into()), problem: "a trial needs time".into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use ninefold_model::{Backup, Record, Term};

    use super::*;

    /// Whoever may start the VM without force is named; a host that may only perhaps have it is not sent to.
    #[test]
    fn the_host_that_had_the_vm_last_alone_is_the_one_to_ask() {
        let host = |name: &str| name.parse::<ninefold_model::HostName>().unwrap();
        let ask = |record: Record| {
            let refusal = of_protocol(protocol::Refused::Held { record, me: host("a") });
            refusal.host().map(ToString::to_string)
        };
        let alone = Record { term: Term(6), primary: host("b"), backups: Vec::new() };
        assert_eq!(ask(alone.clone()).as_deref(), Some("b"));
        let backups = vec![Backup { host: host("c"), session: Term(4) }];
        assert_eq!(ask(Record { backups: backups.clone(), ..alone.clone() }), None, "it may be another's by now");
        assert_eq!(ask(Record { primary: host("a"), backups, ..alone }), None, "c may take it over from here");
    }
}
