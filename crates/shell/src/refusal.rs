//! What a keeper refuses, in words: what it says is a code and data, and what helps a person is put here.

use ninefold_control::{ClientError, Mixture, OperationKind, Refusal, Work};
use ninefold_model::{HostName, Record};

/// What went wrong with a request, on one line.
pub fn told(error: &ClientError) -> String {
    match error {
        ClientError::Refused(refusal) => words(refusal),
        ClientError::Unreachable { source, .. } => format!("{error}: {source}"),
        other => other.to_string(),
    }
}

/// What is refused, on one line.
pub fn words(refusal: &Refusal) -> String {
    match refusal {
        Refusal::BadRequest { field: Some(field), problem } => {
            format!("the keeper does not understand the field '{field}': {problem}")
        }
        Refusal::BadRequest { field: None, problem } => {
            format!("the keeper does not understand the request: {problem}")
        }
        Refusal::UnsupportedVersion { asked, spoken } => {
            let spoken: Vec<_> = spoken.iter().map(ToString::to_string).collect();
            format!("the keeper does not speak version {asked} of its control API, but {}", spoken.join(" and "))
        }
        Refusal::TooLong { limit } => format!("the request has more than {limit} bytes"),
        Refusal::KeeperEnds => "the keeper is ending".into(),
        Refusal::NoAnswer { limit_ms } => format!("the keeper has not come to an answer within {} s", limit_ms / 1000),
        Refusal::Busy { with } => busy(*with).into(),
        Refusal::Failed { reason } => reason.clone(),
        Refusal::RunsHere => "the VM runs here already".into(),
        Refusal::RunsElsewhere { host: Some(host) } => {
            format!("the VM runs on host {host}, or this host is about to take it over")
        }
        Refusal::RunsElsewhere { host: None } => {
            "the VM runs on another host, or this host is about to take it over".into()
        }
        Refusal::NotRunningHere { host: Some(host) } => {
            format!("the VM does not run on this host: as far as its keeper knows, host {host} has it")
        }
        Refusal::NotRunningHere { host: None } => {
            "the VM does not run on this host, and its keeper knows of no other that has it".into()
        }
        Refusal::JustTakenOver => {
            "another host has just taken the VM over, and this one keeps its checkpoint for a while".into()
        }
        Refusal::HeldElsewhere { record, host } => held(record, host.as_ref()),
        Refusal::Overtaken => "another host was faster".into(),
        Refusal::Retired { term, at_s } => {
            format!("the VM was retired {} (term {term}): it is no more", at(*at_s))
        }
        Refusal::NoRecord => "the witness has no record of the VM".into(),
        Refusal::NameTaken { name, vm } => format!("this host keeps a VM called {name} already: {vm}"),
        Refusal::NoBackup { host: Some(host) } => format!("{host} is not a backup that is ready to take the VM"),
        Refusal::NoBackup { host: None } => "no backup is ready to take the VM".into(),
        Refusal::WitnessSilent { reason } => format!("the witness does not answer: {reason}"),
        Refusal::WitnessDoubted { reason } => format!("the witness cannot be believed: {reason}"),
        Refusal::VolumesMixed { by, snapshot } => {
            format!("the volumes are a mixture: {} was cut off", cut_off(*by, snapshot))
        }
        Refusal::VolumesBehind { volume, since, .. } => {
            let since = since.as_deref().unwrap_or("while it was protected");
            format!(
                "volume {volume} may be behind what clients were told {since}: it was not all on this host's disk when the VM ended here"
            )
        }
        Refusal::NotLogged => "the VM is not non-volatile: it has no log".into(),
        Refusal::LogGoesOn { epoch: Some(epoch) } => {
            format!("the VM goes on from its log (epoch {epoch}) when the witness allows")
        }
        Refusal::LogGoesOn { epoch: None } => "the VM is going on from its log by itself".into(),
        Refusal::LogUnusable { reason } => format!("the log cannot be used: {reason}"),
        Refusal::StartFailed { reason } => format!("the VM could not be started: {reason}"),
        Refusal::GuestOff => "the guest has switched itself off".into(),
        Refusal::GuestPaused => "the VM is paused: its guest hears nothing".into(),
        Refusal::GuestSuspended => "the guest has suspended itself, and hears nothing".into(),
        Refusal::NotPaused => "the VM is not paused".into(),
        Refusal::NotSuspended => "the guest is not suspended".into(),
        Refusal::CannotFreeze { reason } => format!("the guest's file systems cannot be frozen: {reason}"),
        Refusal::ImageUnusable { reason } => reason.clone(),
        Refusal::NothingOnTrial => "no image is on trial".into(),
        Refusal::UnknownOperation { operation } => format!("the keeper knows no operation {operation}"),
        Refusal::EarlierKeeper { operation, .. } => {
            format!("the keeper was started anew since operation {operation} began, and knows nothing of it")
        }
        Refusal::NotCancellable { operation, kind } => {
            format!("operation {operation} ({}) cannot be cancelled, or not any more", operation_name(*kind))
        }
        Refusal::TooManyOperations { limit } => format!("{limit} operations run already"),
        Refusal::TokenUsed { operation, kind } => {
            let begun = operation.map_or_else(String::new, |id| format!(", which has begun operation {id}"));
            format!("the token was given to another request ({}){begun}", operation_name(*kind))
        }
        Refusal::Cancelled => "it was cancelled".into(),
        Refusal::VmEnded { reason } => format!("the VM has ended here: {reason}"),
        Refusal::Relaunched { reason } => format!("the VM's QEMU was launched anew meanwhile: {reason}"),
        Refusal::Stayed { reason } => format!("the VM stays here: {reason}"),
        Refusal::ShutdownIgnored { within_ms } => {
            let within = humantime::format_duration(std::time::Duration::from_millis(*within_ms));
            format!("the guest has not switched itself off within {within}, and runs on")
        }
        Refusal::FellBack { reason } => format!("the image on trial failed: {reason}; the committed one is booted"),
    }
}

/// What an operation does, for people.
pub fn operation_name(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Start => "start",
        OperationKind::Restore => "restore",
        OperationKind::Recover => "recover",
        OperationKind::Snapshot => "snapshot",
        OperationKind::Dump => "dump",
        OperationKind::Protect => "protect",
        OperationKind::Switchover => "switchover",
        OperationKind::Stop => "stop",
        OperationKind::Shutdown => "shutdown",
        OperationKind::Trial => "trial",
        OperationKind::Retire => "retirement",
        OperationKind::Rename => "renaming",
        OperationKind::Unknown => "something that this command does not know",
    }
}

fn busy(with: Work) -> &'static str {
    match with {
        Work::Start => "the VM is being started",
        Work::Restore => "the VM is being started from a snapshot",
        Work::Recover => "the VM is being started from its log",
        Work::LogLook => "the VM's log is being looked at",
        Work::DiskLook => "what another client has asked for is still being looked at: does the disk answer?",
        Work::Snapshot => "a snapshot is under way",
        Work::Dump => "the guest's memory is being written",
        Work::Launch => "the VM's QEMU is being launched",
        Work::Switchover => "the VM is being handed over",
        Work::Stop => "the VM is being stopped",
        Work::Trial => "an image is on trial already",
        Work::Retire => "the VM is being retired",
        Work::Rename => "the VM is being renamed",
        Work::Witness => "the witness is being asked for what comes first",
    }
}

/// A time of the witness's clock, seconds since 1970.
fn at(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds));
    time.map_or_else(
        || "at a time that no clock shows".into(),
        |t| format!("at {}", humantime::format_rfc3339_seconds(t)),
    )
}

fn cut_off(by: Mixture, snapshot: &Option<String>) -> String {
    match (by, snapshot) {
        (Mixture::Resync, _) => "a resync from another host".into(),
        (Mixture::Log, _) => "going on from the log".into(),
        (Mixture::Restore, Some(name)) => format!("restoring the snapshot '{name}'"),
        (Mixture::Restore, None) => "restoring a snapshot".into(),
    }
}

/// Who has the VM by the witness's record. `last`: who had it last, alone.
fn held(record: &Record, last: Option<&HostName>) -> String {
    let Record { term, primary, backups } = record;
    let hosts: Vec<_> = backups.iter().map(|b| b.host.as_str()).collect();
    let holder = match last {
        Some(host) => format!("{host} was the last host that ran the VM: it runs there still, or it has ended there"),
        None if hosts.is_empty() => format!("{primary} was the last host that ran the VM"),
        None => format!("{primary} ran the VM, and {} may have taken it over", hosts.join(" or ")),
    };
    format!("by the witness's record (term {term}) {holder}")
}

/// What there is to do about what went wrong with a request.
pub fn help_for(error: &ClientError) -> Option<String> {
    match error {
        ClientError::Refused(refusal) => help(refusal),
        ClientError::Unknown { .. } => {
            Some("the keeper is newer than this command: use the command of its version".into())
        }
        _ => None,
    }
}

/// What there is to do about a refusal.
pub fn help(refusal: &Refusal) -> Option<String> {
    let text = match refusal {
        Refusal::UnsupportedVersion { .. } | Refusal::BadRequest { .. } => {
            "use the command of the keeper's version, and the keeper of this command's"
        }
        Refusal::Busy { with: Work::Dump | Work::Snapshot | Work::Trial } => "`ninefold vm status` shows how far it is",
        Refusal::Busy { with: Work::Switchover } => {
            "try again when that is done, on the host that has it then: `ninefold vm status`"
        }
        Refusal::Busy { .. } => "try again in a moment",
        Refusal::NoAnswer { .. } | Refusal::KeeperEnds => {
            "`ninefold vm status` and `ninefold vm events` show what happens"
        }
        Refusal::RunsHere => "`ninefold vm stop` ends it, `ninefold vm switchover` moves it",
        Refusal::RunsElsewhere { .. } | Refusal::NotRunningHere { .. } | Refusal::Overtaken => {
            "`ninefold vm status` shows where it runs"
        }
        Refusal::JustTakenOver => "try again in a minute, or with `--force`: what this host holds of it is lost then",
        Refusal::HeldElsewhere { host: Some(host), .. } => {
            return Some(format!(
                "a VM that has ended on {host} is started there: `ninefold vm start --host {host}`. If {host} is gone for good, name another host with \
                 `--host` and add `--force`: the VM boots there, and what only {host} had of it is lost"
            ));
        }
        Refusal::HeldElsewhere { host: None, .. } => {
            "wait until one of them has it, or see to them; when you know that none runs it, `--force` starts it all the same"
        }
        Refusal::Retired { .. } => {
            "a new VM gets an id of its own (`ninefold vm new-id`), and may have the name; what this one has left on the hosts' disks can be removed"
        }
        Refusal::NoRecord => {
            "it was never booted, or retired very long ago: its configuration (`name`) can be changed or removed as it is"
        }
        Refusal::NameTaken { .. } => "choose another name, or rename that VM first: a name is one VM's on a host",
        Refusal::NoBackup { .. } => "`ninefold vm status` shows what its backups are at",
        Refusal::WitnessSilent { .. } | Refusal::WitnessDoubted { .. } => {
            "see to the witness first; `ninefold vm status` shows when it answers again"
        }
        Refusal::VolumesMixed { by: Mixture::Resync, .. } => {
            "start it on another host, or restore a snapshot here: `ninefold vm restore`"
        }
        Refusal::VolumesMixed { .. } => {
            "begin that anew (`ninefold vm restore`, `ninefold vm recover`), or start it on another host"
        }
        Refusal::VolumesBehind { record, .. } => return Some(if_behind(record.as_ref())),
        Refusal::NotLogged => "`ninefold vm start` boots it",
        Refusal::LogGoesOn { .. } => {
            "`ninefold vm events --follow` shows how; `--force` starts it all the same, and the log is lost"
        }
        Refusal::LogUnusable { .. } => {
            "`ninefold vm recover` says what each host's log would go back to; `--force` boots the VM, and the log is lost"
        }
        Refusal::StartFailed { .. } | Refusal::Failed { .. } => "`ninefold vm status` and `ninefold doctor` show more",
        Refusal::GuestOff => "`ninefold vm status` shows when the VM has ended",
        Refusal::GuestPaused => "`ninefold vm resume` first",
        Refusal::GuestSuspended => "`ninefold vm wake` first",
        Refusal::NotPaused | Refusal::NotSuspended => "it runs",
        Refusal::CannotFreeze { .. } => "`--freeze auto` takes the snapshot all the same",
        Refusal::ImageUnusable { .. } => "the files must be there, under the same names, on every host of the VM",
        Refusal::NothingOnTrial => "`ninefold vm status` shows which image runs",
        Refusal::UnknownOperation { .. } | Refusal::TooManyOperations { .. } | Refusal::NotCancellable { .. } => {
            "`ninefold vm operations` shows those that there are"
        }
        Refusal::EarlierKeeper { .. }
        | Refusal::VmEnded { .. }
        | Refusal::Relaunched { .. }
        | Refusal::Stayed { .. } => "`ninefold vm events` and `ninefold vm status` show what the keepers are at",
        Refusal::ShutdownIgnored { .. } => {
            "`ninefold vm console` shows what it is at; `ninefold vm shutdown --force` or `ninefold vm stop` ends it"
        }
        Refusal::FellBack { .. } => "`ninefold vm console` shows what it said, `ninefold vm events` what happened",
        Refusal::TooLong { .. } | Refusal::Cancelled | Refusal::TokenUsed { .. } => return None,
    };
    Some(text.to_owned())
}

/// What there is to do about images that may be behind on a host, when the witness's record is this.
fn if_behind(found: Option<&Record>) -> String {
    let last = match found {
        Some(record) => format!(
            "by the witness's record (term {}) {} ran the VM last, alone: another host's disks are as they were when it was a backup",
            record.term, record.primary
        ),
        None => "the witness does not know which host ran the VM last: another host's disks may have more, or be hours older".into(),
    };
    format!(
        "{last}; compare them (`ninefold vm status` and `ninefold vm events` there) before you start the VM there with `--force`; \
         `--force` here starts it without what is missing"
    )
}

#[cfg(test)]
mod tests {
    use ninefold_model::{Backup, Term};

    use super::*;

    /// Nobody is sent to a host whose disks may be older without being told so.
    #[test]
    fn the_help_says_which_host_ran_the_vm_last() {
        let record = Record { term: Term(9), primary: "a".parse().unwrap(), backups: Vec::new() };
        let (known, unknown) = (if_behind(Some(&record)), if_behind(None));
        assert!(known.contains("(term 9) a ran the VM last"), "{known}");
        assert!(unknown.contains("does not know which host"), "{unknown}");
        for help in [known, unknown] {
            assert!(help.contains("compare") && !help.contains("  "), "{help}");
        }
    }

    #[test]
    fn who_may_have_the_vm_is_said() {
        let host = |name: &str| name.parse::<HostName>().unwrap();
        let alone = Record { term: Term(6), primary: host("b"), backups: Vec::new() };
        let said = Refusal::HeldElsewhere { record: alone.clone(), host: Some(host("b")) };
        assert_eq!(
            words(&said),
            "by the witness's record (term 6) b was the last host that ran the VM: it runs there still, or it has ended there"
        );
        // What is to be typed can be typed as it stands.
        assert!(help(&said).unwrap().contains("`ninefold vm start --host b`"));
        let backups = ["c", "d"].map(|name| Backup { host: host(name), session: Term(4) }).to_vec();
        let said = Refusal::HeldElsewhere { record: Record { backups, ..alone }, host: None };
        assert_eq!(words(&said), "by the witness's record (term 6) b ran the VM, and c or d may have taken it over");
    }

    /// Nobody is told to type a word that stands for another one.
    #[test]
    fn no_help_has_a_place_to_fill_in() {
        let source = include_str!("refusal.rs");
        let (source, _) = source.split_once("#[cfg(test)]").unwrap();
        let commands = source.split('`').skip(1).step_by(2).filter(|quoted| quoted.starts_with("ninefold "));
        let mut found = 0;
        for command in commands {
            found += 1;
            assert!(
                !command.split(' ').any(|word| word.len() > 1 && word.chars().all(char::is_uppercase)),
                "{command}"
            );
        }
        assert!(found > 10, "{found}");
    }

    #[test]
    fn where_the_vm_is_is_said_as_far_as_it_is_known() {
        let said = words(&Refusal::NotRunningHere { host: Some("b".parse().unwrap()) });
        assert!(said.contains("host b has it"), "{said}");
    }
}
