//! What protection costs a VM that works on its volumes, and what a resync takes.
//!
//! Two VMs, one after the other: PostgreSQL on one volume with a second, raw one beside it for the jobs named after fio's; then
//! one whose volume changes by a known share while its backup is down. The sides of a comparison take turns, as in the
//! rest of the benchmark.
//!
//! * [`plan`]: what is measured, in which order · [`runner`]: doing it · [`pgbench`]: the client of the database
//! * [`results`]: `volume.json` · [`table`]: `volume.md`

pub mod pgbench;
pub mod plan;
pub mod results;
pub mod runner;
pub mod table;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{LabError, io_at};

pub use plan::VolumePlan;
pub use results::VolumeReport;
pub use runner::run;

/// Writes `volume.json` and `volume.md` into a directory, which is made. Returns the files.
///
/// # Errors
/// What the file system says.
pub fn write(report: &VolumeReport, dir: &Path) -> Result<Vec<PathBuf>, LabError> {
    fs::create_dir_all(dir).map_err(io_at(format!("make {}", dir.display())))?;
    let json = serde_json::to_string_pretty(report).map_err(|e| io_at("write volume.json")(e))?;
    let files = [("volume.json", json + "\n"), ("volume.md", table::markdown(report))];
    let mut written = Vec::new();
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).map_err(io_at(format!("write {}", path.display())))?;
        written.push(path);
    }
    Ok(written)
}
