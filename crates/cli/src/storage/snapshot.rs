//! `ninefold snapshot`: the snapshots in a host's pool.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::{Args, Subcommand};
use ninefold_keeper::config::DEFAULT_POOL;
use ninefold_keeper::primary::snapshot::freeze_of;
use ninefold_model::health::Freeze;
use ninefold_model::{SnapshotName, VmId};
use ninefold_shell::Failure;
use ninefold_shell::output::{self, Output, bytes, count};
use ninefold_shell::{interrupt, progress};
use ninefold_snapshot::file::{OnProgress, Snapshot};
use ninefold_snapshot::store::{Store, StoreError};
use serde::Serialize;

use crate::error::CliError;
use crate::vm::events::frozen;

/// Snapshots of VMs in this host's storage pool
///
/// `ninefold vm snapshot` takes them, `ninefold vm restore` starts a VM from one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold snapshot list\n  \
    ninefold snapshot export before-upgrade /srv/before-upgrade.nfsnap\n  \
    ninefold snapshot import /srv/before-upgrade.nfsnap --pool /var/lib/ninefold/pool")]
pub struct SnapshotArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(ListArgs),
    Info(NameArgs),
    Verify(VerifyArgs),
    Export(ExportArgs),
    Import(ImportArgs),
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
struct At {
    /// The host's storage pool, as in the keeper's configuration
    #[arg(long = "pool", value_name = "DIR", default_value = DEFAULT_POOL)]
    root: PathBuf,
}

impl At {
    fn open(&self) -> Result<Store, CliError> {
        if !self.root.is_dir() {
            return Err(CliError::NoPool { pool: self.root.clone() });
        }
        Ok(Store::open(&self.root.join("snapshots"))?)
    }
}

/// List the snapshots
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold snapshot list\n  ninefold snapshot list --json | jq '.snapshots[].name'")]
pub struct ListArgs {
    #[command(flatten)]
    at: At,
}

/// Show one snapshot
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold snapshot info before-upgrade")]
pub struct NameArgs {
    /// The snapshot
    name: SnapshotName,
    #[command(flatten)]
    at: At,
}

/// Read all of a snapshot, with what is in its parents, and compare its checksums
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold snapshot verify before-upgrade")]
pub struct VerifyArgs {
    /// The snapshot
    name: SnapshotName,
    #[command(flatten)]
    at: At,
}

/// Write a snapshot to a file from which another installation can restore it
///
/// What is in its parents is in the file, too.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold snapshot export before-upgrade /srv/before-upgrade.nfsnap")]
pub struct ExportArgs {
    /// The snapshot
    name: SnapshotName,
    /// The file, which must not be there
    file: PathBuf,
    #[command(flatten)]
    at: At,
}

/// Take in a file that was exported, after all of it was checked
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold snapshot import /srv/before-upgrade.nfsnap\n  \
    ninefold snapshot import /srv/before-upgrade.nfsnap --name old")]
pub struct ImportArgs {
    /// The file
    file: PathBuf,
    /// What to call it, if not as it was
    #[arg(long)]
    name: Option<SnapshotName>,
    #[command(flatten)]
    at: At,
}

/// Remove a snapshot, for ever
///
/// Refused while another one keeps only what differs from it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold snapshot remove before-upgrade")]
pub struct RemoveArgs {
    /// The snapshot
    name: SnapshotName,
    #[command(flatten)]
    at: At,
}

/// One snapshot, for people and programs.
#[derive(Debug, Serialize)]
struct Shown {
    name: SnapshotName,
    /// What it was called then, and who it is.
    vm: String,
    vm_id: VmId,
    host: String,
    created_at: u64,
    parent: Option<SnapshotName>,
    memory_mib: u64,
    volumes: Vec<u64>,
    /// The file's length, without parents.
    bytes: u64,
    pages: u64,
    blocks: u64,
    /// How the guest's file systems are in it; none: they were not to be frozen.
    freeze: Option<Freeze>,
    arch: String,
    accel: String,
    machine: String,
    cpu: String,
    qemu: String,
    root: String,
}

impl Shown {
    fn of(snapshot: &Snapshot) -> Self {
        let (head, hello) = (snapshot.head(), snapshot.hello());
        let (pages, blocks) = snapshot.counts();
        let [major, minor, micro] = head.platform.qemu;
        Self {
            name: head.name.clone(),
            vm: hello.spec.name.to_string(),
            vm_id: hello.spec.id,
            host: hello.from.to_string(),
            created_at: head.created_at,
            parent: head.parent.as_ref().map(|p| p.name.clone()),
            memory_mib: hello.spec.hardware.memory_mib,
            volumes: head.volumes.clone(),
            bytes: snapshot.bytes(),
            pages,
            blocks,
            freeze: freeze_of(snapshot),
            arch: serde_json::to_value(head.platform.arch)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            accel: head.platform.accel.to_string(),
            machine: head.platform.machine.clone(),
            cpu: head.platform.cpu.clone(),
            qemu: format!("{major}.{minor}.{micro}"),
            root: snapshot.root().to_string(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Line {
    Known(Box<Shown>),
    Unknown { name: SnapshotName, error: String },
}

#[derive(Debug, Serialize)]
struct List {
    snapshots: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Done<'a> {
    done: &'static str,
    name: &'a SnapshotName,
}

pub fn run(args: SnapshotArgs, output: &Output) -> Result<(), CliError> {
    match args.verb {
        Verb::List(args) => list(&args.at.open()?, output),
        Verb::Info(args) => info(&args.at.open()?, &args.name, output),
        Verb::Verify(args) => verify(&args.at.open()?, &args.name, output),
        Verb::Export(args) => {
            let store = args.at.open()?;
            with_bar("exporting", |told| store.export(&args.name, &args.file, told).map(drop))?;
            done(output, "exported", &args.name, &format!("is in {}", args.file.display()))
        }
        Verb::Import(args) => {
            let store = args.at.open()?;
            let mut name = None;
            with_bar("importing", |told| {
                name = Some(store.import(&args.file, args.name.as_ref(), told)?);
                Ok(())
            })?;
            name.map_or(Ok(()), |name| info(&store, &name, output))
        }
        Verb::Remove(args) => {
            args.at.open()?.remove(&args.name)?;
            done(output, "removed", &args.name, "is gone")
        }
    }
}

fn done(output: &Output, what: &'static str, name: &SnapshotName, text: &str) -> Result<(), CliError> {
    Ok(output.show(&Done { done: what, name }, || format!("snapshot '{name}' {text}"))?)
}

fn list(store: &Store, output: &Output) -> Result<(), CliError> {
    let line = |listed: ninefold_snapshot::store::Listed| match listed.snapshot {
        Ok(snapshot) => Line::Known(Box::new(Shown::of(&snapshot))),
        Err(error) => Line::Unknown { name: listed.name, error: CliError::from(error).text() },
    };
    let list = List { snapshots: store.list()?.into_iter().map(line).collect() };
    Ok(output.show(&list, || text(&list))?)
}

fn text(list: &List) -> String {
    if list.snapshots.is_empty() {
        return "no snapshots".into();
    }
    let mut table = output::table(&["NAME", "VM", "TAKEN", "MEMORY", "FILE", "PARENT"]);
    for line in &list.snapshots {
        match line {
            Line::Known(shown) => table.add_row([
                shown.name.to_string(),
                shown.vm.clone(),
                when(shown.created_at),
                format!("{} MiB", shown.memory_mib),
                bytes(shown.bytes),
                shown.parent.as_ref().map_or_else(|| "-".into(), ToString::to_string),
            ]),
            Line::Unknown { name, error } => table.add_row([name.as_str(), &format!("! {error}")]),
        };
    }
    output::text(&table)
}

/// UTC, to the second.
fn when(unix: u64) -> String {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix)).to_string()
}

fn info(store: &Store, name: &SnapshotName, output: &Output) -> Result<(), CliError> {
    let snapshot = store.get(name)?;
    let shown = Shown::of(&snapshot);
    output.show(&shown, || {
        let mut text = format!("snapshot '{}'\n", shown.name);
        let mut row = |what: &str, value: &str| text += &format!("  {what:<10} {value}\n");
        row(
            "of",
            &format!("VM '{}' ({}), taken on host {} at {}", shown.vm, shown.vm_id, shown.host, when(shown.created_at)),
        );
        row("memory", &format!("{} MiB, {} pages of it not zero", shown.memory_mib, count(shown.pages)));
        let sizes: Vec<String> = shown.volumes.iter().map(|&size| bytes(size)).collect();
        row("volumes", &if sizes.is_empty() { "none".into() } else { sizes.join(", ") });
        row("file", &bytes(shown.bytes));
        row("parent", shown.parent.as_ref().map_or("none: it stands alone", SnapshotName::as_str));
        row(
            "needs",
            &format!("{}, {}, CPU {}, {}; was QEMU {}", shown.arch, shown.machine, shown.cpu, shown.accel, shown.qemu),
        );
        if let Some(freeze) = &shown.freeze {
            row("frozen", &frozen(freeze));
        }
        row("root", &shown.root);
        text
    })?;
    Ok(())
}

fn verify(store: &Store, name: &SnapshotName, output: &Output) -> Result<(), CliError> {
    let snapshot = store.get(name)?;
    with_bar("verifying", |told| {
        snapshot.verify(told).map_err(|source| StoreError::Snapshot { name: name.clone(), source })
    })?;
    done(output, "verified", name, "is whole")
}

/// Does something with a bar; an interrupt ends it in an orderly way.
fn with_bar(text: &str, work: impl FnOnce(OnProgress<'_>) -> Result<(), StoreError>) -> Result<(), CliError> {
    let bar = progress::parts(text);
    let stop = interrupt::stop_flag()?;
    let result = work(&mut |done, total| {
        progress::part(&bar, if total == 0 { 1.0 } else { done as f64 / total as f64 });
        if stop.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    Ok(result?)
}
