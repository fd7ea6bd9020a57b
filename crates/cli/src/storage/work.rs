//! What takes its time: a bar, and an end on Ctrl-C that leaves nothing half-made.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ninefold_model::VolumeName;
use ninefold_shell::Output;
use ninefold_shell::progress::ProgressBar;
use ninefold_shell::{interrupt, progress};
use ninefold_volume::Pool;
use ninefold_volume::pool::{FileFormat, Import, Kind};
use serde::Serialize;

use super::file::OuterFile;
use super::{in_pool, show};
use crate::error::CliError;

/// A long operation on a pool, from its beginning until this is dropped.
pub struct Work {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Work {
    /// Shows `text`. From here on a first SIGINT, SIGTERM or SIGHUP ends the operation in an orderly way.
    pub fn begin(text: &str) -> Result<Self, CliError> {
        Ok(Self { stop: interrupt::stop_flag()?, bar: progress::parts(text) })
    }

    /// What the operation is to call.
    pub fn progress(&self) -> impl FnMut(f64) -> ControlFlow<()> {
        |part| {
            progress::part(&self.bar, part);
            if self.stop.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Imports a file, with a bar, and shows what came of it.
pub fn import(pool: &Pool, kind: Kind, name: &VolumeName, what: &Import<'_>, output: &Output) -> Result<(), CliError> {
    let work = Work::begin(&format!("importing {}", what.source.display()))?;
    let done = pool.import(kind, name, what, &mut work.progress());
    drop(work);
    done.map_err(in_pool(pool.root()))?;
    show::one(pool, kind, name, output)
}

/// What was exported.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    exported: &'a VolumeName,
    file: &'a std::path::Path,
    format: &'static str,
}

/// Exports an object to a file, with a bar.
pub fn export(pool: &Pool, kind: Kind, name: &VolumeName, file: &OuterFile, output: &Output) -> Result<(), CliError> {
    let format: FileFormat = file.format()?;
    let work = Work::begin(&format!("exporting {} '{name}'", kind.as_str()))?;
    let done = pool.export(kind, name, &file.path, format, &mut work.progress());
    drop(work);
    done.map_err(in_pool(pool.root()))?;
    let exported = Exported { exported: name, file: &file.path, format: format.as_str() };
    Ok(output.show(&exported, || format!("{} '{name}' is in {} ({format})", kind.as_str(), file.path.display()))?)
}
