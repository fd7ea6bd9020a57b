//! What people and programs see of a pool.

use ninefold_model::VolumeName;
use ninefold_shell::Failure;
use ninefold_shell::output::{self, Output, bytes};
use ninefold_volume::pool::{Entry, Info, Kind};
use ninefold_volume::{Format, Pool};
use serde::Serialize;

use super::in_pool;
use crate::error::CliError;

/// A list.
#[derive(Debug, Serialize)]
struct List {
    /// The pool's directory.
    pool: std::path::PathBuf,
    /// Bytes that its file system can still take.
    free: u64,
    #[serde(flatten)]
    objects: Objects,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Objects {
    Volumes(Vec<Line>),
    Images(Vec<Line>),
}

/// One object, or why nothing can be said of it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Line {
    Known(Box<Object>),
    Unknown { name: VolumeName, error: String },
}

/// An object.
#[derive(Debug, Serialize)]
struct Object {
    #[serde(flatten)]
    info: Info,
    /// Of a golden image: the volumes that are thin clones of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    clones: Option<Vec<VolumeName>>,
}

/// The volumes that need golden images, and which.
fn clones(pool: &Pool) -> Result<Vec<(VolumeName, VolumeName)>, CliError> {
    let volumes = pool.list(Kind::Volume).map_err(in_pool(pool.root()))?;
    let golden = |e: Entry| {
        let golden = e.info.ok()?.record;
        let image = golden.golden.clone()?;
        golden.depends_on(&image).then_some((e.name, image))
    };
    Ok(volumes.into_iter().filter_map(golden).collect())
}

fn object(info: Info, kind: Kind, clones: &[(VolumeName, VolumeName)]) -> Object {
    let of = |image: &VolumeName| clones.iter().filter(|(_, i)| i == image).map(|(volume, _)| volume.clone()).collect();
    let clones = (kind == Kind::Golden).then(|| of(&info.name));
    Object { info, clones }
}

/// Shows all objects of a kind.
pub fn list(pool: &Pool, kind: Kind, output: &Output) -> Result<(), CliError> {
    let fail = in_pool(pool.root());
    let clones = clones(pool)?;
    let line = |entry: Entry| match entry.info {
        Ok(info) => Line::Known(Box::new(object(info, kind, &clones))),
        Err(error) => Line::Unknown { name: entry.name, error: fail(error).text() },
    };
    let lines: Vec<Line> = pool.list(kind).map_err(&fail)?.into_iter().map(line).collect();
    let objects = if kind == Kind::Volume { Objects::Volumes(lines) } else { Objects::Images(lines) };
    let list = List { pool: pool.root().into(), free: pool.free().map_err(&fail)?, objects };
    Ok(output.show(&list, || text(&list))?)
}

fn text(list: &List) -> String {
    let (Objects::Volumes(lines) | Objects::Images(lines)) = &list.objects;
    let what = if matches!(list.objects, Objects::Volumes(_)) { "volumes" } else { "images" };
    let end = format!("pool {}: {} free", list.pool.display(), bytes(list.free));
    if lines.is_empty() {
        return format!("no {what}\n{end}");
    }
    let last = if what == "volumes" { "FROM" } else { "CLONES" };
    let mut table = output::table(&["NAME", "SIZE", "FORMAT", "ALLOCATED", last, "USED BY"]);
    for line in lines {
        match line {
            Line::Known(object) => {
                let info = &object.info;
                let from = match &object.clones {
                    Some(clones) => clones.len().to_string(),
                    None => origin(info).unwrap_or_else(|| "-".into()),
                };
                table.add_row([
                    info.name.to_string(),
                    bytes(info.record.size),
                    format_of(info),
                    bytes(info.allocated),
                    from,
                    info.holder.clone().unwrap_or_else(|| "-".into()),
                ]);
            }
            Line::Unknown { name, error } => {
                table.add_row([name.as_str(), &format!("! {error}")]);
            }
        }
    }
    format!("{}\n{end}", output::text(&table))
}

fn origin(info: &Info) -> Option<String> {
    match (&info.record.golden, &info.record.device) {
        (_, Some(device)) => Some(device.display().to_string()),
        (Some(image), None) => Some(image.to_string()),
        (None, None) => None,
    }
}

fn format_of(info: &Info) -> String {
    if info.record.device.is_some() { "device".into() } else { info.record.format.to_string() }
}

/// Shows one object.
pub fn one(pool: &Pool, kind: Kind, name: &VolumeName, output: &Output) -> Result<(), CliError> {
    let info = pool.info(kind, name).map_err(in_pool(pool.root()))?;
    let clones = if kind == Kind::Golden { clones(pool)? } else { Vec::new() };
    let object = object(info, kind, &clones);
    Ok(output.show(&object, || describe(kind, &object))?)
}

fn describe(kind: Kind, object: &Object) -> String {
    let info = &object.info;
    let record = &info.record;
    let format = match (&record.golden, &record.device) {
        (_, Some(_)) => "an adopted block device".to_owned(),
        (Some(image), None) if record.format == Format::Qcow2 => format!("qcow2, a thin clone of image '{image}'"),
        (Some(image), None) => format!("{}, a copy of image '{image}'", record.format),
        (None, None) => record.format.to_string(),
    };
    let mut text = format!("{} '{}'\n", kind.as_str(), info.name);
    let mut row = |what: &str, value: &str| text += &format!("  {what:<10} {value}\n");
    row("size", &format!("{} ({} bytes)", bytes(record.size), record.size));
    row("format", &format);
    row("allocated", &bytes(info.allocated));
    row("id", &record.id);
    row("path", &info.path.display().to_string());
    if let Some(clones) = &object.clones {
        let names: Vec<_> = clones.iter().map(VolumeName::as_str).collect();
        row("clones", &if names.is_empty() { "none".to_owned() } else { names.join(", ") });
    }
    row("used by", info.holder.as_deref().unwrap_or("nobody"));
    text
}

/// What was removed.
#[derive(Debug, Serialize)]
struct Removed<'a> {
    removed: &'a VolumeName,
}

/// Removes an object and says so.
pub fn remove(pool: &Pool, kind: Kind, name: &VolumeName, output: &Output) -> Result<(), CliError> {
    pool.remove(kind, name).map_err(in_pool(pool.root()))?;
    Ok(output.show(&Removed { removed: name }, || format!("{} '{name}' is gone", kind.as_str()))?)
}
