//! Where a host of a lab has its VM's sockets.

use std::fs;
use std::path::{Path, PathBuf};

use ninefold_keeper::config::KeeperConfig;

use crate::error::{LabError, io_at};

/// Where the VM has its sockets for which this host of a lab was configured last.
pub(crate) fn vm_dir_in(host: &Path) -> Result<PathBuf, LabError> {
    let path = host.join("keeper.json");
    let text = fs::read(&path).map_err(io_at(format!("read {}", path.display())))?;
    let config: KeeperConfig = serde_json::from_slice(&text).map_err(io_at(format!("read {}", path.display())))?;
    Ok(config.vm_dir())
}
