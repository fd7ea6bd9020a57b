//! The witness process.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ninefold_listen::descriptors;
use ninefold_model::HostName;
use ninefold_transport::{Identity, Listener, Security};
use ninefold_witness::{Limits, Registers, Server};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const AFTER_HELP: &str = "\
Example, with a directory that holds ca.pem, cert.pem and key.pem of host w, and crl.pem if anything is revoked:
  ninefold-witness --listen 10.9.0.3:7100 --data /var/lib/ninefold/witness --identity /etc/ninefold/identity

Once it serves it prints 'listening on ADDRESS'. SIGTERM ends it. What changes in the directory of --identity, such as a
certificate that is renewed or the revocation list in crl.pem, is used within a second. RUST_LOG sets what it logs (default: info).
It keeps its records through kill -9 and loss of power.";

/// Keeps, for each VM, the record of who may speak for it.
#[derive(Parser)]
#[command(name = "ninefold-witness", version, after_help = AFTER_HELP)]
struct Arguments {
    /// Address and port to listen on; port 0 lets the kernel choose.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where the records are kept. One process at a time may use it.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    security: SecurityArguments,
    /// Most hosts' connections at a time.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    max_connections: usize,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct SecurityArguments {
    /// Directory with ca.pem, cert.pem and key.pem: TLS with certificates on both sides.
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// Speak without TLS, as host HOST. Peers are believed whatever they say: only for a dedicated link.
    #[arg(long, value_name = "HOST")]
    plain_text: Option<HostName>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ninefold_logging::stderr::begin_apart("info");
    let ended = run(arguments);
    ninefold_logging::stderr::settle();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ninefold-witness: {error}");
            let mut cause = error.source();
            while let Some(deeper) = cause {
                eprintln!("  because: {deeper}");
                cause = deeper.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// Descriptors that are not connections of known peers: handshakes, those that end, the store.
const OTHER_DESCRIPTORS: u64 = 512;

/// As many connections as are wished for, if this process may have so many.
fn connections(wished: usize) -> usize {
    let limit = descriptors::raise_limit();
    let most = usize::try_from(limit.saturating_sub(OTHER_DESCRIPTORS).max(limit / 2)).unwrap_or(usize::MAX);
    if most < wished {
        tracing::warn!(limit, connections = most, "this process may open too few files for {wished} connections");
    }
    wished.min(most)
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let security = match (arguments.security.identity, arguments.security.plain_text) {
        (Some(dir), _) => Security::MutualTls(Identity::load(dir)?),
        (None, Some(host)) => Security::PlainText { host },
        (None, None) => return Err("give --identity or --plain-text".into()),
    };
    if let Security::PlainText { host } = &security {
        tracing::warn!(%host, "without TLS: peers are believed whatever they say");
    }
    if let Security::MutualTls(identity) = &security {
        identity.watch(|notice, _| match notice.is_warning() {
            true => tracing::warn!("{notice}"),
            false => tracing::info!("{notice}"),
        })?;
    }
    let registers = Registers::open(&arguments.data)?;
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let listener = Listener::bind(arguments.listen, security)?;
    let limits = Limits { connections: connections(arguments.max_connections), ..Limits::default() };
    let server = Server::new(listener, registers, limits);

    let stop = server.handle();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            stop.stop();
        }
    })?;
    writeln!(std::io::stdout(), "listening on {}", server.local_addr())?;
    Ok(server.run()?)
}
