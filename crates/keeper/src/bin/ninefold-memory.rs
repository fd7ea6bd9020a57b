//! `ninefold-memory`: holds the memory of a standby while its keeper is restarted.
//!
//! A keeper starts it, with the seconds for which it is to wait for the next one and the file that tells that one of it; nobody
//! else does. Its descriptors are all that it has: 0 is the memory, 1 the note of what that holds, 2 a pipe whose other end the
//! keeper has. When that closes the keeper has ended; the next one opens 0 and 1 under `/proc/PID/fd` and ends this process. If
//! none comes it ends by itself, and the memory is the host's again.

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let Some(Ok(seconds)) = std::env::args().nth(1).map(|s| s.parse()) else { return ExitCode::FAILURE };
    match ninefold_keeper::backup::custody::hold(Duration::from_secs(seconds)) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody would read why.
        Err(_) => ExitCode::FAILURE,
    }
}
