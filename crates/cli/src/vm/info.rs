//! `ninefold vm info`.

use std::time::Duration;

use clap::Args;
use ninefold_keeper::devices::agent::{Agent, AgentError, plain};
use ninefold_shell::output::{self, Output, bytes};
use serde::{Deserialize, Serialize};

use super::keepers::Where;
use crate::error::CliError;

/// Network interfaces, addresses of one, and file systems that are shown.
const MOST: usize = 256;
/// Longest text of the guest's that is shown, characters.
const MAX_TEXT: usize = 200;

/// Show what the guest's agent tells: system, addresses, file systems
///
/// It is the guest's word. The guest has to run QEMU's agent (qemu-guest-agent).
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm info\n  \
    ninefold vm info --json | jq -r '.interfaces[].addresses[].address'\n\n\
    With --json: host, agent (its version), hostname, system, kernel, interfaces [{name, mac, addresses [{address, prefix}]}],\n\
    file_systems [{mountpoint, type, device, total, used}], and in `not_told` what the agent does not tell, and why.")]
pub struct InfoArgs {
    #[command(flatten)]
    at: Where,
    /// How long all answers together may take
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    wait: u64,
}

#[derive(Debug, Default, Serialize)]
struct Shown {
    /// Where the VM runs.
    host: String,
    agent: Option<String>,
    hostname: Option<String>,
    system: Option<String>,
    kernel: Option<String>,
    interfaces: Vec<Interface>,
    file_systems: Vec<FileSystem>,
    not_told: Vec<NotTold>,
}

#[derive(Debug, Serialize)]
struct NotTold {
    what: &'static str,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Version {
    version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Named {
    host_name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct System {
    pretty_name: Option<String>,
    name: Option<String>,
    id: Option<String>,
    kernel_release: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Interface {
    name: String,
    #[serde(rename(deserialize = "hardware-address"), default)]
    mac: Option<String>,
    #[serde(rename(deserialize = "ip-addresses"), default)]
    addresses: Vec<Address>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Address {
    #[serde(rename(deserialize = "ip-address"))]
    address: String,
    prefix: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileSystem {
    mountpoint: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename(deserialize = "name"))]
    device: String,
    /// Bytes; not from every agent.
    #[serde(rename(deserialize = "total-bytes"), default)]
    total: Option<u64>,
    #[serde(rename(deserialize = "used-bytes"), default)]
    used: Option<u64>,
}

pub fn run(args: &InfoArgs, output: &Output) -> Result<(), CliError> {
    let (keeper, _) = args.at.keepers()?.primary()?;
    let host = keeper.host.clone();
    let failed = |source| CliError::Agent { host: host.clone(), source };
    let mut agent = Agent::connect(&keeper.agent(), Duration::from_secs(args.wait)).map_err(failed)?;
    let shown = ask(&mut agent, &host).map_err(failed)?;
    Ok(output.show(&shown, || tell(&shown))?)
}

/// Asks for everything; what the agent refuses, or says so that it makes no sense, is left out.
fn ask(agent: &mut Agent, host: &str) -> Result<Shown, AgentError> {
    let mut shown = Shown { host: host.to_owned(), ..Shown::default() };
    let mut not_told = Vec::new();
    let mut told = |what, error| match error {
        AgentError::Refused(_) | AgentError::Garbled("makes no sense" | "says nothing") => {
            not_told.push(NotTold { what, reason: error.to_string() });
            Ok(())
        }
        fatal => Err(fatal),
    };
    let short = |text: &str| plain(text, MAX_TEXT);
    match agent.ask::<Version>("guest-info") {
        Ok(found) => shown.agent = Some(short(&found.version)),
        Err(error) => told("agent", error)?,
    }
    match agent.ask::<Named>("guest-get-host-name") {
        Ok(found) => shown.hostname = Some(short(&found.host_name)),
        Err(error) => told("hostname", error)?,
    }
    match agent.ask::<System>("guest-get-osinfo") {
        Ok(found) => {
            shown.system = found.pretty_name.or(found.name).or(found.id).as_deref().map(short);
            shown.kernel = found.kernel_release.as_deref().map(short);
        }
        Err(error) => told("system", error)?,
    }
    match agent.ask::<Vec<Interface>>("guest-network-get-interfaces") {
        Ok(found) => shown.interfaces = found.into_iter().take(MOST).map(Interface::bounded).collect(),
        Err(error) => told("interfaces", error)?,
    }
    match agent.ask::<Vec<FileSystem>>("guest-get-fsinfo") {
        Ok(found) => shown.file_systems = found.into_iter().take(MOST).map(FileSystem::bounded).collect(),
        Err(error) => told("file_systems", error)?,
    }
    shown.not_told = not_told;
    Ok(shown)
}

impl Interface {
    fn bounded(self) -> Self {
        let mut addresses = self.addresses;
        addresses.truncate(MOST);
        for address in &mut addresses {
            address.address = plain(&address.address, MAX_TEXT);
        }
        Self { name: plain(&self.name, MAX_TEXT), mac: self.mac.map(|mac| plain(&mac, MAX_TEXT)), addresses }
    }
}

impl FileSystem {
    fn bounded(self) -> Self {
        Self {
            mountpoint: plain(&self.mountpoint, MAX_TEXT),
            kind: plain(&self.kind, MAX_TEXT),
            device: plain(&self.device, MAX_TEXT),
            ..self
        }
    }
}

fn tell(shown: &Shown) -> String {
    let mut text = format!("the VM runs on host {}; its guest says:\n", shown.host);
    let rows =
        [("host name", &shown.hostname), ("system", &shown.system), ("kernel", &shown.kernel), ("agent", &shown.agent)];
    for (what, value) in rows {
        if let Some(value) = value {
            text += &format!("{what}: {value}\n");
        }
    }
    for missing in &shown.not_told {
        text += &format!("{}: not told: {}\n", missing.what, missing.reason);
    }
    if !shown.interfaces.is_empty() {
        let mut table = output::table(&["INTERFACE", "MAC", "ADDRESSES"]);
        for interface in &shown.interfaces {
            let addresses: Vec<_> = interface.addresses.iter().map(|a| format!("{}/{}", a.address, a.prefix)).collect();
            let mac = interface.mac.clone().unwrap_or_default();
            table.add_row([interface.name.clone(), mac, addresses.join(" ")]);
        }
        text += &format!("\n{}\n", output::text(&table));
    }
    if !shown.file_systems.is_empty() {
        let mut table = output::table(&["MOUNTED AT", "TYPE", "DEVICE", "SIZE", "USED"]);
        for fs in &shown.file_systems {
            let size = |n: Option<u64>| n.map_or_else(String::new, bytes);
            table.add_row([fs.mountpoint.clone(), fs.kind.clone(), fs.device.clone(), size(fs.total), size(fs.used)]);
        }
        text += &format!("\n{}\n", output::text(&table));
    }
    text
}
