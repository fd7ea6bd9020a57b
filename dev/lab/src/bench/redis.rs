//! `redis-benchmark` (Debian package redis-tools), run on the client's host.

use std::process::Stdio;
use std::time::Duration;

use crate::boot::redis;
use crate::error::{LabError, io_at};
use crate::guest::REDIS_PORT;
use crate::lab::Lab;
use crate::topology::CLIENT;

/// One call of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// `set` or `get`.
    pub test: &'static str,
    pub clients: u32,
    /// Commands on their way for each client.
    pub pipeline: u32,
    /// Keys are drawn from so many.
    pub range: u32,
    pub requests: u64,
}

impl Call {
    /// The call that takes about `time` at `rate` requests a second: whole pipelines of every client.
    pub fn lasting(self, time: Duration, rate: f64) -> Self {
        let batch = u64::from(self.clients) * u64::from(self.pipeline);
        let batches = (rate * time.as_secs_f64() / batch as f64).ceil().max(4.0);
        Self { requests: batches as u64 * batch, ..self }
    }

    /// Runs it; requests a second.
    ///
    /// # Errors
    /// No process can be started on the client's host, `redis-benchmark` ends with an error (as when it is killed after two
    /// minutes), or it prints no rate.
    pub fn run(&self, lab: &Lab) -> Result<f64, LabError> {
        let what = format!("redis-benchmark -t {} -c {} -P {}", self.test, self.clients, self.pipeline);
        // A VM that is lost must not make it wait for ever. timeout(1) is of coreutils.
        let mut command = lab.command(CLIENT, "timeout")?;
        command.args(["--signal=KILL", "120", "redis-benchmark", "--csv", "-t", self.test]);
        command.args(["-h", &redis().ip().to_string(), "-p", &REDIS_PORT.to_string()]);
        command.args(["-c", &self.clients.to_string(), "-P", &self.pipeline.to_string()]);
        command.args(["-r", &self.range.to_string(), "-n", &self.requests.to_string()]);
        let output = command.stdin(Stdio::null()).output().map_err(io_at(format!("start {what}")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        match (output.status.success(), rate(&text)) {
            (true, Some(rate)) => Ok(rate),
            _ => Err(LabError::Command {
                what,
                detail: format!(
                    "{}: {} {}",
                    output.status,
                    text.trim(),
                    String::from_utf8_lossy(&output.stderr).trim()
                ),
            }),
        }
    }
}

/// Requests a second, from the table that `--csv` prints: a line of heads, then one for each test.
fn rate(csv: &str) -> Option<f64> {
    let fields = |line: &str| line.split(',').map(|f| f.trim().trim_matches('"').to_owned()).collect::<Vec<_>>();
    let mut lines = csv.lines().map(fields);
    let column = lines.by_ref().find(|l| l.first().is_some_and(|f| f == "test"))?.iter().position(|f| f == "rps")?;
    lines.next()?.get(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"72992.70\",\"1.2\"\n";
        assert_eq!(rate(csv), Some(72992.70));
        assert_eq!(rate("Could not connect to Redis"), None);
        assert_eq!(rate("\"test\",\"rps\"\n"), None);
    }

    #[test]
    fn whole_pipelines() {
        let call = Call { test: "set", clients: 8, pipeline: 500, range: 1, requests: 0 };
        assert_eq!(call.lasting(Duration::from_secs(2), 70_000.0).requests, 140_000);
        assert_eq!(call.lasting(Duration::from_secs(2), 0.0).requests, 16_000);
        let single = Call { clients: 1, pipeline: 1, ..call };
        assert_eq!(single.lasting(Duration::from_millis(1500), 300.0).requests, 450);
    }
}
