//! `ninefold ca`: the authority by whose certificates hosts know each other.
//!
//! * [`show`]: what people and programs see of it · [mod@help]: advice

mod help;
mod show;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ninefold_model::HostName;
use ninefold_shell::Output;
use ninefold_transport::authority::{LIST_DAYS, Occasion, Which};
use ninefold_transport::{Authority, AuthorityError, UtcTime, Validity};

use crate::error::CliError;

pub use help::help;

/// Where an authority is unless somebody says otherwise.
const DEFAULT_CA: &str = "/var/lib/ninefold/ca";

/// The authority by whose certificates hosts know each other
///
/// It is a directory with a private key: keep it off the hosts, on a machine of the operators, and keep a copy of it.
#[derive(Debug, Args)]
#[command(after_help = "Examples, from the first day to a stolen key:\n  \
    ninefold ca init\n  \
    ninefold ca issue a --out identity-a     copy it to /etc/ninefold/identity on host a\n  \
    ninefold ca list\n  \
    ninefold ca renew a --out identity-a     copy it there again: nothing has to be restarted\n  \
    ninefold ca revoke a --out crl.pem       copy the list to every host, the witness first\n\n\
    How to distribute, renew and revoke: docs/guides/operate.md, 'Certificates'.")]
pub struct CaArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Init(InitArgs),
    Issue(IssueArgs),
    Renew(RenewArgs),
    Revoke(RevokeArgs),
    Crl(CrlArgs),
    List(ListArgs),
    Show(ShowArgs),
}

/// Which authority.
#[derive(Debug, Args)]
struct At {
    /// The authority's directory
    #[arg(long = "ca", value_name = "DIR", default_value = DEFAULT_CA)]
    dir: PathBuf,
}

impl At {
    fn open(&self) -> Result<Authority, CliError> {
        Ok(Authority::open(&self.dir)?)
    }
}

/// Make an authority, or take one over
///
/// Its key is for EC P-256. The directory is made (mode 0700), or must be empty. An authority that OpenSSL made is taken over with
/// --import-cert and --import-key (PEM; the key in PKCS #8, not encrypted): both are copied.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold ca init\n  \
    ninefold ca init --ca /safe/ninefold-ca --days 7300\n  \
    ninefold ca init --import-cert ca.pem --import-key ca-key.pem\n\n\
    With --json: the authority, as `ninefold ca show` shows it.")]
pub struct InitArgs {
    /// For how many days the authority is good
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500), conflicts_with = "import_cert")]
    days: u32,
    /// Take over the authority with this certificate
    #[arg(long, value_name = "FILE", requires = "import_key")]
    import_cert: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "import_cert")]
    import_key: Option<PathBuf>,
    #[command(flatten)]
    at: At,
}

/// Where a host's files are written, and for how long.
#[derive(Debug, Args)]
struct Files {
    /// The directory for ca.pem, cert.pem, key.pem and crl.pem; one that has older ones is replaced at once
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// For how many days the certificate is good; not for longer than the authority
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

/// Issue a certificate to a host that has none
///
/// Writes a directory that is the host's identity. Its key is there and nowhere else.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold ca issue a --out identity-a\n  \
    ninefold ca issue w --out /etc/ninefold/identity --days 90\n\n\
    With --json: host, serial, issued_s, valid_until_s (seconds since the Unix epoch), state and out.")]
pub struct IssueArgs {
    /// The host's name, as `host` in its keeper's configuration
    host: HostName,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    at: At,
}

/// Issue a host its next certificate
///
/// The one that it has stays good until it ends: revoke it first if its key may be known to somebody. Keepers and the witness use
/// the new files within a second, without a restart; connections that are up go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold ca renew a --out identity-a\n  \
    ninefold ca renew w --out /etc/ninefold/identity\n\n\
    With --json: the same as `ninefold ca issue`.")]
pub struct RenewArgs {
    /// The host's name, as `host` in its keeper's configuration
    host: HostName,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    at: At,
}

/// Revoke what a host has been issued, and make a new revocation list
///
/// It counts on a host once the list is there: copy it to every host as crl.pem in its identity's directory, to the witness first.
/// Hosts refuse the revoked one from then on, and end the connections that they have with it, within a second.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold ca revoke a --out crl.pem\n  \
    ninefold ca revoke --serial 5b0e21c1 --out crl.pem\n  \
    ninefold ca revoke --cert old/cert.pem     one that OpenSSL issued, with an authority that was taken over\n\n\
    With --json: revoked (what `ninefold ca list` shows of each) and list.")]
#[command(group = clap::ArgGroup::new("which").required(true).args(["host", "serial", "cert"]))]
pub struct RevokeArgs {
    /// All that is in force of this host
    host: Option<HostName>,
    /// The certificate with this serial number, hexadecimal
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// The certificate in this file
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Write the list to this file, too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    at: At,
}

/// Make a new revocation list of what is revoked
///
/// Before the time is over by which the last one promised the next. Hosts go on with a list that is overdue, and say so.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold ca crl --out crl.pem\n  \
    ninefold ca crl --days 30 --out crl.pem\n\n\
    With --json: revoked (how many it names), next_update_s (seconds since the Unix epoch) and out.")]
pub struct CrlArgs {
    /// The next list is due in so many days
    #[arg(long, default_value_t = LIST_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Write it to this file, too; it is crl.pem in the authority's directory
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    at: At,
}

/// List the certificates that were issued
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold ca list\n  \
    ninefold ca list --host a\n  \
    ninefold ca list --json | jq '.certificates[] | select(.state == \"in-force\").host'\n\n\
    With --json: certificates, each with host, serial, issued_s, valid_until_s, revoked_s (seconds since the Unix epoch) and state: \
    in-force, expired or revoked.")]
pub struct ListArgs {
    /// Those of this host alone
    #[arg(long)]
    host: Option<HostName>,
    #[command(flatten)]
    at: At,
}

/// Show the authority itself
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold ca show\n  ninefold ca show --json | jq .valid_until_s\n\n\
    With --json: ca (its directory), name, valid_from_s, valid_until_s, hosts, certificates (how many were issued), and list: number, \
    revoked, next_update_s. Times are seconds since the Unix epoch.")]
pub struct ShowArgs {
    #[command(flatten)]
    at: At,
}

pub fn run(args: CaArgs, output: &Output) -> Result<(), CliError> {
    match args.verb {
        Verb::Init(args) => init(&args, output),
        Verb::Issue(IssueArgs { host, files, at }) => issue(Occasion::First, &host, &files, &at, output),
        Verb::Renew(RenewArgs { host, files, at }) => issue(Occasion::Renewal, &host, &files, &at, output),
        Verb::Revoke(args) => revoke(&args, output),
        Verb::Crl(args) => crl(&args, output),
        Verb::List(args) => list(&args, output),
        Verb::Show(args) => show::authority(&args.at.dir, &args.at.open()?, output),
    }
}

fn init(args: &InitArgs, output: &Output) -> Result<(), CliError> {
    let dir = &args.at.dir;
    let authority = match (&args.import_cert, &args.import_key) {
        (Some(cert), Some(key)) => Authority::import(dir, cert, key)?,
        _ => {
            Authority::check_clock()?;
            Authority::create(dir, Validity::days(args.days))?
        }
    };
    show::authority(dir, &authority, output)
}

fn issue(on: Occasion, host: &HostName, files: &Files, at: &At, output: &Output) -> Result<(), CliError> {
    let authority = at.open()?;
    let validity = authority.for_days(files.days)?;
    let entry = authority.issue_on(on, host, &files.out, validity)?;
    show::issued(&entry, &files.out, output)
}

fn revoke(args: &RevokeArgs, output: &Output) -> Result<(), CliError> {
    let authority = args.at.open()?;
    let which = match (&args.host, &args.serial, &args.cert) {
        (Some(host), ..) => Which::Host(host),
        (_, Some(serial), _) => Which::Serial(serial),
        (.., Some(path)) => Which::File(path),
        // The group of arguments requires one.
        (None, None, None) => return Err(AuthorityError::UnknownSerial { serial: String::new() }.into()),
    };
    let revoked = authority.revoke(which)?;
    let list = match &args.out {
        Some(out) => {
            Authority::write(out, &authority.latest_list()?)?;
            out.clone()
        }
        None => authority.list_path(),
    };
    show::revoked(&revoked, &list, output)
}

fn crl(args: &CrlArgs, output: &Output) -> Result<(), CliError> {
    let authority = args.at.open()?;
    let (text, state) = authority.publish(args.days)?;
    let list = match &args.out {
        Some(out) => {
            Authority::write(out, &text)?;
            out.clone()
        }
        None => authority.list_path(),
    };
    show::list_made(&state, &list, output)
}

fn list(args: &ListArgs, output: &Output) -> Result<(), CliError> {
    let mut index = args.at.open()?.index()?;
    if let Some(host) = &args.host {
        if !index.hosts().contains(host) {
            return Err(AuthorityError::UnknownHost { host: host.clone(), known: index.hosts() }.into());
        }
        index.entries.retain(|e| e.host == *host);
    }
    show::certificates(&index, UtcTime::now(), output)
}
