//! `pgbench` (of the packages that the guest is made of), run on the client's host.

use std::process::Stdio;

use crate::error::{LabError, io_at};
use crate::guest::Guest;
use crate::lab::Lab;
use crate::ledger::sql::USER;
use crate::topology::CLIENT;

/// Makes its tables: 100,000 accounts for each unit of scale.
///
/// # Errors
/// What pgbench says.
pub fn fill(lab: &Lab, scale: u32) -> Result<(), LabError> {
    run(lab, &["-i", "-q", "-s", &scale.to_string()]).map(drop)
}

/// Its own transaction ("TPC-B like") for so many seconds by the client's clock; transactions a second.
///
/// # Errors
/// What pgbench says.
pub fn tps(lab: &Lab, clients: u32, seconds: u32) -> Result<f64, LabError> {
    let text = run(lab, &["-n", "-c", &clients.to_string(), "-T", &seconds.to_string()])?;
    rate(&text).ok_or_else(|| LabError::Command { what: "pgbench".into(), detail: format!("no rate in '{text}'") })
}

fn run(lab: &Lab, arguments: &[&str]) -> Result<String, LabError> {
    let what = format!("pgbench {}", arguments.join(" "));
    let service = Guest::Postgres.service();
    // A VM that is lost must not make it wait for ever. timeout(1) is of coreutils.
    let mut command = lab.command(CLIENT, "timeout")?;
    command.args(["--signal=KILL", "180"]).arg(Guest::Postgres.dir()?.join("tools/pgbench"));
    command.args(arguments).args([
        "-h",
        &service.ip().to_string(),
        "-p",
        &service.port().to_string(),
        "-U",
        USER,
        USER,
    ]);
    let output = command.stdin(Stdio::null()).output().map_err(io_at(format!("start {what}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(LabError::Command { what, detail: format!("{}: {}", output.status, said.trim()) })
        }
    }
}

/// From "tps = 133.612494 (without initial connection time)".
fn rate(text: &str) -> Option<f64> {
    let line = text.lines().find(|l| l.starts_with("tps = ") && l.contains("without initial connection time"))?;
    line.split_ascii_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read() {
        let text = "transaction type: <builtin: TPC-B (sort of)>\nlatency average = 29.937 ms\n\
                    initial connection time = 11.1 ms\ntps = 133.612494 (without initial connection time)\n";
        assert_eq!(rate(text), Some(133.612_494));
        assert_eq!(rate("pgbench: error: could not connect"), None);
    }
}
