//! `ninefold-lab status`.

use clap::Args;
use ninefold_lab::LabStatus;
use ninefold_shell::keepers::{HostReport, Keeper, ask_all};
use ninefold_shell::output::{self, Output};
use serde::Serialize;

use crate::error::CommandError;
use crate::labs::Which;
use crate::picture;

/// Show a lab: hosts, cables, processes and roles
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold-lab status\n  ninefold-lab status --json | jq .vm")]
pub struct StatusArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    lab: LabStatus,
    /// What each host's keeper says; empty when the lab has no VM.
    vm: Vec<HostReport>,
}

pub fn run(args: &StatusArgs, output: &Output) -> Result<(), CommandError> {
    let lab = args.which.attach()?;
    let hosts = lab.hosts_with_keepers();
    let keepers: Vec<_> =
        hosts.map(|host| Ok(Keeper::new(host, &lab.vm_dir(host)?))).collect::<Result<_, CommandError>>()?;
    let shown = Shown { lab: lab.status()?, vm: ask_all(&keepers) };
    output.show(&shown, || {
        let mut text = picture::lab(&shown.lab, &shown.vm);
        let mut table = output::table(&["HOST", "ADDRESS", "ROLE", "PROCESSES"]);
        for host in &shown.lab.hosts {
            let role = shown.vm.iter().find(|r| r.host == host.name).map_or("", HostReport::role);
            let processes: Vec<_> = host.processes.iter().map(|p| format!("{} ({})", p.program, p.pid)).collect();
            let frozen = if host.frozen { "FROZEN: " } else { "" };
            let address = host.address.clone().unwrap_or_default();
            table.add_row([host.name.clone(), address, role.to_owned(), format!("{frozen}{}", processes.join(" "))]);
        }
        text += "\n";
        text += &output::text(&table);
        text
    })?;
    Ok(())
}
