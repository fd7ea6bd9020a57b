//! `ninefold vm recover`: going on from a log that nobody goes on from by himself.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use ninefold_control::{Answer, LogReport, Request};
use ninefold_shell::Output;
use serde::Serialize;

use super::keepers::{Keeper, Where};
use super::snapshot::wait;
use crate::error::CliError;

/// Go on from a log that is damaged, or behind what clients were told
///
/// A non-volatile VM goes on by itself from a log that has all of it. Where none has, this says of each host's log which checkpoint it would go
/// back to and what is lost then, and changes nothing. With --force the VM goes on from the log of --host: the witness is asked as for a boot, and the
/// old log is kept beside the pool's logs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm recover                             what each host's log would go back to\n  \
    ninefold vm recover --host b --json | jq .logs[0].lost_ms\n  \
    ninefold vm recover --host b --force            goes on from it")]
pub struct RecoverArgs {
    /// The host whose log it is; without it all of them are asked
    #[arg(long)]
    host: Option<String>,
    /// Go on from it: only when you know that no host runs the VM, and have read what is lost
    #[arg(long, requires = "host")]
    force: bool,
    #[command(flatten)]
    at: Where,
}

/// What the hosts' logs would be gone back to.
#[derive(Debug, Serialize)]
struct Logs {
    /// The best first.
    logs: Vec<LogReport>,
    /// Hosts whose log cannot be used at all, and why.
    none: Vec<Useless>,
}

#[derive(Debug, Serialize)]
struct Useless {
    host: String,
    reason: String,
}

pub fn run(args: &RecoverArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let asked = match &args.host {
        Some(host) => vec![keepers.of_host(host)?.clone()],
        None => keepers.all.clone(),
    };
    if args.force
        && let [keeper] = &asked[..]
    {
        return wait(keeper, &Request::Recover { force: true }, "recover", output, CliError::NotRecovered);
    }
    let (mut logs, mut none) = (Vec::new(), Vec::new());
    for keeper in &asked {
        match ask(keeper) {
            Ok(report) => logs.push(report),
            Err(error) if asked.len() > 1 => {
                none.push(Useless { host: keeper.host.clone(), reason: error.to_string() });
            }
            Err(error) => return Err(error),
        }
    }
    logs.sort_by_key(rank);
    logs.reverse();
    let all = Logs { logs, none };
    Ok(output.show(&all, || words(&all))?)
}

fn ask(keeper: &Keeper) -> Result<LogReport, CliError> {
    match keeper.client.request(&Request::Recover { force: false })? {
        Answer::Log { report } => Ok(*report),
        other => Err(CliError::NotRecovered(format!("{}: {other:?}", keeper.host))),
    }
}

/// The greater the better: one that can be gone on from, then the newer. Epochs count within a term, and the hosts' clocks only when nothing else does.
fn rank(log: &LogReport) -> (bool, bool, u64, u64, u64) {
    (log.refused.is_none(), log.newer.is_none(), log.term.0, log.epoch.0, log.time_ms)
}

fn words(all: &Logs) -> String {
    let mut text = String::new();
    for log in &all.logs {
        text += &one(log);
    }
    for Useless { host, reason } in &all.none {
        text += &format!("{host}: {reason}\n");
    }
    text += match all.logs.first() {
        None => {
            "\nThere is no log to go back in: `ninefold vm start --force` boots the VM, `ninefold vm restore` starts it from a snapshot."
        }
        Some(best) if best.refused.is_some() => {
            "\nNo log can be gone on from. What remains are the volumes alone, as after a loss of power: `ninefold vm start --force`; \
             or a snapshot: `ninefold vm restore`."
        }
        Some(best) => {
            return text
                + &format!(
                    "\n`ninefold vm recover --host {} --force` goes on from there, when no host runs the VM.",
                    best.host
                );
        }
    };
    text
}

fn one(log: &LogReport) -> String {
    let time = match log.time_ms {
        0 => "at a time that is not known".to_owned(),
        ms => humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string(),
    };
    let mut text =
        format!("{}: back to epoch {} of term {} on {}, {time}\n", log.host, log.epoch, log.term, log.primary);
    if let Some(damage) = &log.damage {
        text += &format!("  damaged after it: {damage}\n");
    }
    text += &match (log.lost_checkpoints, log.lost_ms) {
        (0, _) => "  it is the last checkpoint of this log\n".to_owned(),
        (n, 0) => format!("  lost: {n} checkpoints that were on the disk\n"),
        (n, ms) => format!("  lost: {n} checkpoints that were on the disk, of {}.{:03} s\n", ms / 1000, ms % 1000),
    };
    if let Some(newer) = &log.newer {
        text += &format!("  and what the VM did after that: {newer}\n");
    }
    if let Some(why) = &log.refused {
        text += &format!("  cannot be gone on from: {why}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ninefold_model::{Epoch, Term};

    fn log(host: &str, term: u64, epoch: u64) -> LogReport {
        LogReport {
            host: host.parse().unwrap(),
            primary: "a".parse().unwrap(),
            term: Term(term),
            epoch: Epoch(epoch),
            time_ms: 1_000_000_000_123,
            damage: None,
            lost_checkpoints: 0,
            lost_ms: 0,
            newer: None,
            refused: None,
        }
    }

    #[test]
    fn the_best_log_is_the_newest_that_can_be_gone_on_from() {
        let refused = LogReport { refused: Some("volumes".into()), ..log("a", 9, 9) };
        let behind = LogReport { newer: Some("b has had it".into()), ..log("b", 8, 9) };
        let mut all = [refused, behind, log("c", 7, 1), log("d", 7, 2)];
        all.sort_by_key(rank);
        let hosts: Vec<_> = all.iter().rev().map(|l| l.host.as_str()).collect();
        assert_eq!(hosts, ["d", "c", "b", "a"]);
        // The witness has lost its register: a has gone on alone for long after it had lost b.
        let lost = |log| LogReport { newer: Some("not known".into()), ..log };
        let mut all = [lost(log("b", 2, 500)), lost(log("a", 3, 100_000))];
        all.sort_by_key(rank);
        assert_eq!(all.last().unwrap().host.as_str(), "a");
    }

    #[test]
    fn it_says_what_is_lost_and_what_to_do() {
        let damaged = LogReport {
            damage: Some("segment-3: a record".into()),
            lost_checkpoints: 12,
            lost_ms: 2400,
            newer: Some("b has had the VM since (term 9)".into()),
            ..log("a", 7, 41)
        };
        let text = words(&Logs { logs: vec![damaged.clone()], none: Vec::new() });
        for part in [
            "epoch 41 of term 7",
            "2001-09-09T01:46:40.123Z",
            "segment-3: a record",
            "lost: 12 checkpoints that were on the disk, of 2.400 s",
            "b has had the VM since",
            "`ninefold vm recover --host a --force`",
        ] {
            assert!(text.contains(part), "no '{part}' in {text}");
        }
        let refused = LogReport { refused: Some("the volumes".into()), ..damaged };
        let text = words(&Logs { logs: vec![refused], none: Vec::new() });
        assert!(text.contains("cannot be gone on from: the volumes") && text.contains("vm start --force"), "{text}");
        let none = Useless { host: "a".into(), reason: "there is no log on this host".into() };
        let text = words(&Logs { logs: Vec::new(), none: vec![none] });
        assert!(text.contains("a: there is no log") && text.contains("vm restore"), "{text}");
    }
}
