//! `ninefold-keeper`: keeps one VM on one host.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ninefold_keeper::config::KeeperConfig;

/// A program that can be told to die says so.
const VERSION: &str = match ninefold_fault::COMPILED_IN {
    true => concat!(env!("CARGO_PKG_VERSION"), " with fault points"),
    false => env!("CARGO_PKG_VERSION"),
};

/// Keeps one VM on this host: runs it as its primary, or holds its checkpoints as its backup.
///
/// One keeper for each VM and host. A keeper starts as a standby; `ninefold vm start` boots the VM at one of them.
#[derive(Debug, Parser)]
#[command(
    version = VERSION,
    after_help = "Example:\n  ninefold-keeper --config /etc/ninefold/db.json\n\n\
    RUST_LOG=debug shows more. SIGTERM hands a protected VM to its backup and ends."
)]
struct Args {
    /// The keeper's configuration (JSON).
    #[arg(long)]
    config: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    ninefold_keeper::panics::end_the_process();
    ninefold_logging::stderr::begin_apart("info");
    let ended = KeeperConfig::load(&args.config).map_err(Into::into).and_then(ninefold_keeper::keeper::run);
    ninefold_logging::stderr::settle();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ninefold-keeper: {}", ninefold_keeper::error::report(&error));
            ExitCode::FAILURE
        }
    }
}
