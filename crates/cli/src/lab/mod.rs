//! `ninefold lab`: hosts on this machine, and what can befall them.
//!
//! * [`up`]: making one · [`status`]: looking at it · [`faults`]: kill, freeze, cut and their opposites
//! * [`exec`]: a command inside a host · [`chaos`]: random faults for a time

mod chaos;
mod exec;
mod faults;
mod status;
mod up;

pub use up::VmShape;

use clap::{Args, Subcommand};
use ninefold_lab::Lab;
use serde::Serialize;

use crate::error::CliError;
use crate::output::{self, Output};

/// Hosts in network namespaces on this machine, and what can befall them
///
/// A lab has two hosts for VMs (a and b), the witness's host (w), a client, a public network and a replication network.
/// It stays until `ninefold lab down`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ninefold lab up\n  ninefold lab kill a host\n  ninefold lab status\n  ninefold lab down"
)]
pub struct LabArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(up::UpArgs),
    Down(DownArgs),
    Status(status::StatusArgs),
    Kill(faults::KillArgs),
    Restart(faults::RestartArgs),
    Freeze(faults::FreezeArgs),
    Thaw(faults::ThawArgs),
    Cut(faults::CutArgs),
    Heal(faults::HealArgs),
    Witness(faults::WitnessArgs),
    Exec(exec::ExecArgs),
    Chaos(chaos::ChaosArgs),
    List(ListArgs),
    Sweep(SweepArgs),
}

/// Which lab.
#[derive(Debug, Args)]
pub struct Which {
    /// The lab; without it the only one that is up
    #[arg(long = "name", alias = "lab", value_name = "LAB")]
    name: Option<String>,
}

impl Which {
    fn attach(&self) -> Result<Lab, CliError> {
        attach(self.name.as_deref())
    }
}

/// Finds a lab by name; without one the only lab that is up. Labs that end with their makers (tests, demos) count only
/// when there is no other.
pub fn attach(name: Option<&str>) -> Result<Lab, CliError> {
    if let Some(name) = name {
        return Ok(Lab::attach(name)?);
    }
    let mut labs: Vec<Lab> = Lab::list().iter().filter_map(|name| Lab::attach(name).ok()).collect();
    if labs.iter().any(|lab| lab.record().persistent) {
        labs.retain(|lab| lab.record().persistent);
    }
    match labs.len() {
        0 => Err(CliError::NoLab),
        1 => Ok(labs.swap_remove(0)),
        _ => Err(CliError::SeveralLabs(labs.iter().map(|lab| lab.name().to_owned()).collect())),
    }
}

/// Take a lab down: its processes, networks and files
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold lab down\n  ninefold lab down --name demo")]
struct DownArgs {
    #[command(flatten)]
    which: Which,
}

/// Show the labs of this machine
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold lab list")]
struct ListArgs {}

/// Remove what labs left whose makers were killed
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold lab sweep")]
struct SweepArgs {}

/// What a verb did, for programs.
#[derive(Debug, Serialize)]
struct Done<'a> {
    lab: &'a str,
    done: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    persistent: bool,
    owner_pid: u32,
    owner_alive: bool,
    hosts: Vec<String>,
}

pub fn run(args: LabArgs, output: &Output) -> Result<(), CliError> {
    match args.verb {
        Verb::Up(args) => up::run(&args, output),
        Verb::Down(args) => down(&args, output),
        Verb::Status(args) => status::run(&args, output),
        Verb::Kill(args) => faults::kill(&args, output),
        Verb::Restart(args) => faults::restart(&args, output),
        Verb::Freeze(args) => faults::freeze(&args, output),
        Verb::Thaw(args) => faults::thaw(&args, output),
        Verb::Cut(args) => faults::cut(&args, output),
        Verb::Heal(args) => faults::heal(&args, output),
        Verb::Witness(args) => faults::witness(&args, output),
        Verb::Exec(args) => exec::run(&args),
        Verb::Chaos(args) => chaos::run(&args, output),
        Verb::List(_) => list(output),
        Verb::Sweep(_) => sweep(output),
    }
}

fn down(args: &DownArgs, output: &Output) -> Result<(), CliError> {
    let lab = args.which.attach()?;
    let name = lab.name().to_owned();
    let bar = crate::progress::spinner(&format!("taking lab '{name}' down"));
    let done = lab.down();
    bar.finish_and_clear();
    done?;
    output.show(&Done { lab: &name, done: "down", host: None }, || format!("lab '{name}' is gone"))
}

fn list(output: &Output) -> Result<(), CliError> {
    let all: Vec<_> = Lab::list()
        .iter()
        .filter_map(|name| Lab::attach(name).ok())
        .map(|lab| Listed {
            name: lab.name().to_owned(),
            persistent: lab.record().persistent,
            owner_pid: lab.record().owner.pid,
            owner_alive: lab.record().owner.alive(),
            hosts: lab.topology().nodes().map(str::to_owned).collect(),
        })
        .collect();
    output.show(&all, || {
        if all.is_empty() {
            return "no lab is up".into();
        }
        let mut table = output::table(&["LAB", "STAYS", "MADE BY", "HOSTS"]);
        for lab in &all {
            let stays = if lab.persistent { "until it is taken down" } else { "as long as its maker" };
            let maker = format!("{}{}", lab.owner_pid, if lab.owner_alive { "" } else { " (ended)" });
            table.add_row([lab.name.clone(), stays.into(), maker, lab.hosts.join(" ")]);
        }
        output::text(&table)
    })
}

fn sweep(output: &Output) -> Result<(), CliError> {
    let swept = Lab::sweep()?;
    output.show(&serde_json::json!({ "swept": swept }), || match swept.is_empty() {
        true => "nothing was left behind".into(),
        false => format!("removed: {}", swept.join(", ")),
    })
}
