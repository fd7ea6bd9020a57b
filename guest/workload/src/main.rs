//! The workload server of the test guest.
//!
//! It listens on TCP (port 7000, or the address given as the only argument), takes one command a line and answers each
//! with one line of JSON. The protocol is described in `guest/README.md`.
//!
//! * [`command`]: what a line may say
//! * [`server`]: connections, and the one set of background jobs that they share
//! * [`dirty`]: memory written in patterns, at a rate
//! * [`cpu`]: a fixed amount of CPU work, and the free-running spinner
//! * [`checksum`]: memory that checks itself
//! * [`disk`]: a volume written in the ways of fio's jobs
//! * [`job`]: background threads that can be stopped
//! * [`rng`]: the generator behind all of them
//! * [`reply`]: JSON lines

mod checksum;
mod command;
mod cpu;
mod dirty;
mod disk;
mod job;
mod memory;
mod reply;
mod rng;
mod server;

use std::net::TcpListener;
use std::process::ExitCode;

fn main() -> ExitCode {
    let address = std::env::args().nth(1).unwrap_or_else(|| "[::]:7000".to_owned());
    // A guest without IPv6 still serves.
    let listener = TcpListener::bind(&address).or_else(|e| match std::env::args().nth(1) {
        None => TcpListener::bind("0.0.0.0:7000"),
        Some(_) => Err(e),
    });
    match listener {
        Ok(listener) => {
            server::serve(&listener);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("workload: cannot listen on {address}: {e}");
            ExitCode::FAILURE
        }
    }
}
