//! Benchmarks: protected against unprotected, on one VM, in one run, as ratios.
//!
//! Machines differ, and so do their moods; what a protected VM loses against itself unprotected does so much less. So
//! both sides take turns ([`plan`]), each figure is the median of several rounds with the smallest and the largest beside
//! it ([`spread`]), and nothing is left out.
//!
//! * [`plan`]: what is measured, in which order · [`runner`]: doing it
//! * [`subject`]: the VM and its lab · [`redis`], [`workload`]: what the client asks of it
//! * [`rebind`]: breaks in a VM's protection · [`scaling`], [`snapshots`]: pauses and snapshots over the guest's memory
//! * [`volume`]: the same for work on volumes, and resyncs · [`clock`]: the guest's clock · [`pace`]: how far a run is
//! * [`results`]: `ft.json` · [`table`]: `ft.md` · [`plots`]: the SVGs

pub mod clock;
pub mod pace;
pub mod plan;
pub mod plots;
pub mod rebind;
pub mod redis;
pub mod results;
pub mod runner;
pub mod scaling;
pub mod snapshots;
pub mod spread;
pub mod subject;
pub mod table;
pub mod volume;
pub mod workload;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{LabError, io_at};

pub use pace::Progress;
pub use plan::Plan;
pub use results::Report;
pub use runner::{Options, run};
pub use volume::VolumeReport;

/// Writes `ft.json`, `ft.md` and the plots into a directory, which is made. Returns the files.
///
/// # Errors
/// A plot cannot be drawn, the directory cannot be made, or a file in it cannot be written.
pub fn write(report: &Report, dir: &Path) -> Result<Vec<PathBuf>, LabError> {
    fs::create_dir_all(dir).map_err(io_at(format!("make {}", dir.display())))?;
    let json = serde_json::to_string_pretty(report).map_err(|e| io_at("write ft.json")(e))?;
    let mut files = vec![("ft.json".to_owned(), json + "\n")];
    let plots = plots::all(report)?;
    let names: Vec<_> = plots.iter().map(|(name, _)| name.clone()).collect();
    files.push(("ft.md".to_owned(), table::markdown(report, &names)));
    files.extend(plots);
    let mut written = Vec::new();
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).map_err(io_at(format!("write {}", path.display())))?;
        written.push(path);
    }
    Ok(written)
}
