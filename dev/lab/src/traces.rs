//! What there is of a lab on this machine: nothing, once it has been taken down.

use std::fs;
use std::path::Path;

use crate::disks;
use crate::processes::cgroup_mount;
use crate::record::{LABS, lab_dir};

/// Its namespaces, control groups, files and mounts, whether it is up or something of it was left.
pub fn traces(lab: &str) -> Vec<String> {
    let names = |dir: &Path, prefix: String| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).filter(move |n| n.starts_with(&prefix))
    };
    let mut found: Vec<_> = names(Path::new("/run/netns"), format!("nf-{lab}-")).collect();
    found.extend(names(Path::new(LABS), format!(".{lab}.")));
    let group = cgroup_mount().map(|m| m.join(format!("ninefold-{lab}")));
    let dirs = [Some(lab_dir(lab)), Some(disks::images(lab)), group];
    found.extend(dirs.into_iter().flatten().filter(|d| d.exists()).map(|d| d.display().to_string()));
    let below = format!("{}/", lab_dir(lab).display());
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|l| l.contains(&below)).map(str::to_owned));
    found
}
