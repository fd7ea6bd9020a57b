//! The labs of this machine: found by name, listed, removed.

use clap::Args;
use ninefold_lab::Lab;
use ninefold_shell::output::{self, Output};
use serde::Serialize;

use crate::error::CommandError;

/// Which lab.
#[derive(Debug, Args)]
pub struct Which {
    /// The lab; without it the only one that is up
    #[arg(long = "name", alias = "lab", value_name = "LAB")]
    name: Option<String>,
}

impl Which {
    /// Finds it.
    pub fn attach(&self) -> Result<Lab, CommandError> {
        attach(self.name.as_deref())
    }
}

/// Finds a lab by name; without one the only lab that is up. Labs that end with their makers (tests, demos) count only
/// when there is no other.
fn attach(name: Option<&str>) -> Result<Lab, CommandError> {
    if let Some(name) = name {
        return Ok(Lab::attach(name)?);
    }
    let mut labs: Vec<Lab> = Lab::list().iter().filter_map(|name| Lab::attach(name).ok()).collect();
    if labs.iter().any(|lab| lab.record().persistent) {
        labs.retain(|lab| lab.record().persistent);
    }
    match labs.len() {
        0 => Err(CommandError::NoLab),
        1 => Ok(labs.swap_remove(0)),
        _ => Err(CommandError::SeveralLabs(labs.iter().map(|lab| lab.name().to_owned()).collect())),
    }
}

/// Take a lab down: its processes, networks and files
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold-lab down\n  ninefold-lab down --name demo")]
pub struct DownArgs {
    #[command(flatten)]
    which: Which,
}

/// Show the labs of this machine
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold-lab list")]
pub struct ListArgs {}

/// Remove what labs left whose makers were killed
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold-lab sweep")]
pub struct SweepArgs {}

/// What a verb did, for programs.
#[derive(Debug, Serialize)]
pub struct Done<'a> {
    pub lab: &'a str,
    pub done: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    persistent: bool,
    owner_pid: u32,
    owner_alive: bool,
    hosts: Vec<String>,
}

pub fn down(args: &DownArgs, output: &Output) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    let name = lab.name().to_owned();
    let bar = crate::progress::spinner(&format!("taking lab '{name}' down"));
    let done = lab.down();
    bar.finish_and_clear();
    done?;
    output.show(&Done { lab: &name, done: "down", host: None }, || format!("lab '{name}' is gone"))?;
    Ok(())
}

pub fn list(output: &Output) -> Result<(), CommandError> {
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
    })?;
    Ok(())
}

pub fn sweep(output: &Output) -> Result<(), CommandError> {
    let swept = Lab::sweep()?;
    output.show(&serde_json::json!({ "swept": swept }), || match swept.is_empty() {
        true => "nothing was left behind".into(),
        false => format!("removed: {}", swept.join(", ")),
    })?;
    Ok(())
}
