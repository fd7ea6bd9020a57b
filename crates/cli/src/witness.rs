//! `ninefold witness`: what the witness keeps.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ninefold_keeper::config::{ConfigError, KeeperConfig, SecurityConfig};
use ninefold_model::{Backup, HostName, Term, VmId, VmName};
use ninefold_shell::output::{self, Output};
use ninefold_transport::{Identity, Security};
use ninefold_witness_client::wire::Entry;
use ninefold_witness_client::{Timeouts, WitnessClient};
use serde::Serialize;

use crate::error::CliError;

/// The witness: who may speak for which VM
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold witness list --config /etc/ninefold/db.json")]
pub struct WitnessArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(ListArgs),
}

/// List the records that the witness keeps
///
/// A record is a VM's id; the name beside it is what the VM was called when the record changed last. It says where the VM lives, and not
/// whether it runs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold witness list --config /etc/ninefold/db.json\n  \
    ninefold witness list --config /etc/ninefold/db.json --json | jq -r '.[] | select(.name == \"db\") | .id'")]
pub struct ListArgs {
    /// The configuration of any keeper of this host: it says where the witness is, and who this host is
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// A record, for people and programs.
#[derive(Debug, Serialize)]
struct Shown {
    id: VmId,
    name: VmName,
    term: Term,
    primary: HostName,
    backups: Vec<Backup>,
}

impl From<Entry> for Shown {
    fn from(Entry { vm, name, record }: Entry) -> Self {
        Self { id: vm, name, term: record.term, primary: record.primary, backups: record.backups }
    }
}

pub fn run(args: &WitnessArgs, output: &Output) -> Result<(), CliError> {
    match &args.verb {
        Verb::List(args) => list(args, output),
    }
}

fn list(args: &ListArgs, output: &Output) -> Result<(), CliError> {
    let config = KeeperConfig::load(&args.config)?;
    let security = match &config.host.security {
        SecurityConfig::MutualTls { identity } => {
            Security::MutualTls(Identity::load(identity).map_err(|e| CliError::Identity(Box::new(e)))?)
        }
        SecurityConfig::PlainText => Security::PlainText { host: config.host.name.clone() },
    };
    let (witness, addr) =
        config.witness().map_err(|reason| ConfigError::Invalid { path: args.config.clone(), reason })?;
    let mut client = WitnessClient::new(addr, witness.clone(), security, Timeouts::default());
    let all: Vec<Shown> = client.list()?.into_iter().map(Shown::from).collect();
    output.show(&all, || tell(&all))?;
    Ok(())
}

fn tell(all: &[Shown]) -> String {
    let mut table = output::table(&["ID", "NAME", "TERM", "PRIMARY", "BACKUPS"]);
    for shown in all {
        let backups: Vec<_> = shown.backups.iter().map(|b| format!("{} (session {})", b.host, b.session)).collect();
        let backups = if backups.is_empty() { "-".to_owned() } else { backups.join(", ") };
        let row = [shown.id.to_string(), shown.name.to_string(), shown.term.to_string(), shown.primary.to_string()];
        table.add_row(row.into_iter().chain([backups]));
    }
    output::text(&table)
}
