//! Where the VMs of a host have their sockets.
//!
//! ```text
//!   RUN/ID/            keeper.sock, console.sock, agent.sock, keeper.lock, …   one for each VM, named by its id
//!   RUN/by-name/NAME   a symbolic link to ../ID                                made and taken down by the VM's keeper
//! ```
//!
//! Of two VMs with one name on a host the second does not start. Whoever looks at the links or changes them locks `RUN/names.lock`, and so does
//! a keeper while it takes its VM's own lock: so nobody takes the look of another for a keeper that lives.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_model::{VmId, VmName};
use rustix::fs::{FlockOperation, flock};

use crate::config::KeeperConfig;
use crate::error::KeeperError;

/// The directory of the links.
const BY_NAME: &str = "by-name";
/// In a VM's directory: held by its keeper.
const LOCK: &str = "keeper.lock";
/// Locked by who looks at the links or changes them.
const NAMES_LOCK: &str = "names.lock";
/// A keeper that was killed holds its lock until the kernel has taken all of it down.
const DYING: Duration = Duration::from_secs(3);
/// Between two attempts at such a lock.
const TURN: Duration = Duration::from_millis(20);

/// The run directory of a VM in that of its host.
#[must_use]
pub fn of(run_dir: &Path, vm: VmId) -> PathBuf {
    run_dir.join(vm.to_string())
}

/// A VM that has a keeper on this host, or had one that has left its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    pub id: VmId,
    /// What it is called, as long as its keeper lives.
    pub name: Option<VmName>,
    pub dir: PathBuf,
}

impl Here {
    /// For people.
    #[must_use]
    pub fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| self.id.to_string(), |name| format!("{name} ({})", self.id))
    }
}

/// The VMs of a host, by id. What else lies in the directory is passed over, and a directory that is not there has none.
#[must_use]
pub fn list(run_dir: &Path) -> Vec<Here> {
    let names: Vec<(VmName, VmId)> = entries(&run_dir.join(BY_NAME))
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, target(&entry.path())?)))
        .collect();
    let here = |entry: fs::DirEntry| {
        let id: VmId = entry.file_name().to_str()?.parse().ok()?;
        let dir = entry.path();
        let name = names.iter().find(|(_, of)| *of == id).map(|(name, _)| name.clone());
        KeeperConfig::control_socket(&dir).exists().then_some(Here { id, name, dir })
    };
    let mut found: Vec<_> = entries(run_dir).filter_map(here).collect();
    found.sort_by_key(|here| here.id);
    found
}

fn entries(dir: &Path) -> impl Iterator<Item = fs::DirEntry> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten()
}

/// Whose name a link is.
fn target(link: &Path) -> Option<VmId> {
    fs::read_link(link).ok()?.file_name()?.to_str()?.parse().ok()
}

/// A keeper's hold on its VM's directory and name. It ends when this is dropped, or with the process.
#[derive(Debug)]
pub struct Hold {
    vm: VmId,
    link: PathBuf,
    names: File,
    _lock: File,
}

impl Hold {
    /// Makes the VM's directory, and the link of this name.
    ///
    /// # Errors
    /// Another keeper keeps the VM on this host, or another VM of its name; those of the file system.
    pub fn take(config: &KeeperConfig, name: &VmName) -> Result<Self, KeeperError> {
        let vm = config.vm.id;
        let by_name = config.host.run_dir.join(BY_NAME);
        let dir = of(&config.host.run_dir, vm);
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| KeeperError::File { what, path, source }
        };
        fs::create_dir_all(&by_name).map_err(failed("cannot make", &by_name))?;
        // Who may open the control socket may do anything with the VM.
        let private = DirBuilder::new().mode(0o700).recursive(true).create(&dir);
        private.map_err(failed("cannot make", &dir))?;
        // Of its own, and nobody else's to open: whoever could lock it would keep every keeper of the host from starting.
        let names_lock = config.host.run_dir.join(NAMES_LOCK);
        let opened = File::options().write(true).create(true).truncate(false).mode(0o600).open(&names_lock);
        let names = opened.map_err(failed("cannot open", &names_lock))?;
        let lock = dir.join(LOCK);
        let lock_file = File::create(&lock).map_err(failed("cannot make", &lock))?;
        let deadline = Instant::now() + DYING;
        let link = by_name.join(name.as_str());
        loop {
            // The process that looks holds this for as long as it looks, and a keeper that waits for another's end does not.
            flock(&names, FlockOperation::LockExclusive).map_err(|e| failed("cannot lock", &names_lock)(e.into()))?;
            if try_lock(&lock_file) {
                break;
            }
            let _ = flock(&names, FlockOperation::Unlock);
            if Instant::now() > deadline {
                return Err(KeeperError::Locked { path: lock });
            }
            thread::sleep(TURN);
        }
        let hold = Self { vm, link, names, _lock: lock_file };
        let taken = hold.name_it(&config.host.run_dir);
        let _ = flock(&hold.names, FlockOperation::Unlock);
        match taken {
            Ok(None) => Ok(hold),
            Ok(Some(other)) => Err(KeeperError::NameTaken { name: name.clone(), vm, other }),
            Err(source) => Err(failed("cannot make", &hold.link)(source)),
        }
    }

    /// Gives the VM another name: its link is there before the former one is not any more. Whose the name is if another has it; nothing is changed then.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn rename(&mut self, config: &KeeperConfig, name: &VmName) -> io::Result<Option<VmId>> {
        flock(&self.names, FlockOperation::LockExclusive)?;
        let former = std::mem::replace(&mut self.link, config.host.run_dir.join(BY_NAME).join(name.as_str()));
        let taken = self.name_it(&config.host.run_dir);
        if !matches!(taken, Ok(None)) {
            self.link = former;
        }
        let _ = flock(&self.names, FlockOperation::Unlock);
        taken
    }

    /// Makes the link, in one step; whose name it is if another has it. The links are locked.
    fn name_it(&self, run_dir: &Path) -> io::Result<Option<VmId>> {
        match target(&self.link) {
            Some(other) if other != self.vm && is_kept(&of(run_dir, other)) => return Ok(Some(other)),
            _ => {}
        }
        let staged = self.link.with_file_name(format!(".{}", self.vm));
        match fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(Path::new("..").join(self.vm.to_string()), &staged)?,
        }
        fs::rename(&staged, &self.link)?;
        // That of its former name; a keeper that was killed has left it, too.
        for entry in entries(&run_dir.join(BY_NAME)) {
            if entry.path() != self.link && target(&entry.path()) == Some(self.vm) {
                // One that stays leads to the same VM.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(None)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // What cannot be taken down is taken for what a keeper that was killed has left.
        if flock(&self.names, FlockOperation::LockExclusive).is_ok() {
            if target(&self.link) == Some(self.vm) {
                let _ = fs::remove_file(&self.link);
            }
            let _ = flock(&self.names, FlockOperation::Unlock);
        }
    }
}

/// Whether another VM than `vm` has this name on a host, and which.
pub fn whose(run_dir: &Path, name: &VmName, vm: VmId) -> Option<VmId> {
    let other = target(&run_dir.join(BY_NAME).join(name.as_str())).filter(|other| *other != vm)?;
    is_kept(&of(run_dir, other)).then_some(other)
}

fn try_lock(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Whether a keeper lives that keeps the VM whose directory this is.
fn is_kept(dir: &Path) -> bool {
    File::open(dir.join(LOCK)).is_ok_and(|file| !try_lock(&file))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of a VM of this number and name, on a host that has its VMs in `dir`.
    pub(crate) fn config(dir: &Path, id: u8, name: &str) -> KeeperConfig {
        let config = serde_json::json!({
            "id": VmId::random(u128::from(id) << 120), "name": name,
            "hardware": { "memory_mib": 1, "boot": "volume" },
            "host": { "name": "a", "run_dir": dir, "listen": "10.8.0.1:7701", "security": "plain_text" },
            "policy": { "peers": [], "witness": { "host": "w", "addr": "10.8.0.3:7700" } }
        });
        serde_json::from_value(config).unwrap()
    }

    fn take(config: &KeeperConfig) -> Result<Hold, KeeperError> {
        Hold::take(config, &config.vm.name)
    }

    /// The keeper listens.
    fn serves(config: &KeeperConfig) -> Here {
        let dir = config.vm_dir();
        fs::write(KeeperConfig::control_socket(&dir), "").unwrap();
        Here { id: config.vm.id, name: Some(config.vm.name.clone()), dir }
    }

    #[test]
    fn a_vm_is_found_by_its_id_and_by_its_name_while_it_is_kept() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(list(root.path()), []);
        let (db, web) = (config(root.path(), 2, "db"), config(root.path(), 1, "web"));
        let holds = (take(&db).unwrap(), take(&web).unwrap());
        assert_eq!(list(root.path()), [], "nobody listens yet");
        fs::create_dir(root.path().join("other")).unwrap();
        let (db_here, web_here) = (serves(&db), serves(&web));
        assert_eq!(list(root.path()), [web_here, db_here.clone()]);
        let link = root.path().join("by-name/db");
        assert_eq!(fs::canonicalize(&link).unwrap(), fs::canonicalize(db.vm_dir()).unwrap());
        drop(holds);
        assert!(fs::symlink_metadata(&link).is_err(), "it is taken down");
        assert_eq!(list(root.path())[1], Here { name: None, ..db_here });
    }

    /// Its file gives it another name, and the keeper that was killed could not take the former link down.
    #[test]
    fn a_vm_has_one_name_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let (db, renamed) = (config(root.path(), 1, "db"), config(root.path(), 1, "web"));
        drop(take(&db).unwrap());
        symlink(Path::new("..").join(db.vm.id.to_string()), root.path().join("by-name/db")).unwrap();
        let _hold = take(&renamed).unwrap();
        let here = serves(&renamed);
        assert_eq!(list(root.path()), [here]);
        assert!(fs::symlink_metadata(root.path().join("by-name/db")).is_err());
    }

    #[test]
    fn a_name_is_one_vms_on_a_host_and_a_vm_one_keepers() {
        let root = tempfile::tempdir().unwrap();
        let (db, other) = (config(root.path(), 1, "db"), config(root.path(), 2, "db"));
        let hold = take(&db).unwrap();
        let refused = take(&other).unwrap_err().to_string();
        assert!(refused.contains(&db.vm.id.to_string()) && refused.contains(&other.vm.id.to_string()), "{refused}");
        assert!(matches!(take(&db), Err(KeeperError::Locked { .. })));
        // Neither has taken the name away.
        assert_eq!(target(&root.path().join("by-name/db")), Some(db.vm.id));
        drop(hold);
        drop(take(&other).unwrap());
        // What a keeper that was killed has left is nobody's.
        symlink("../0000", root.path().join("by-name/db")).unwrap();
        drop(take(&other).unwrap());
        fs::create_dir_all(of(root.path(), db.vm.id)).unwrap();
        symlink(Path::new("..").join(db.vm.id.to_string()), root.path().join("by-name/db")).unwrap();
        let hold = take(&other).unwrap();
        assert_eq!(target(&root.path().join("by-name/db")), Some(other.vm.id));
        // One that ends late takes down no name that is another's by now.
        let link = root.path().join("by-name/db");
        fs::remove_file(&link).unwrap();
        symlink(Path::new("..").join(db.vm.id.to_string()), &link).unwrap();
        drop(hold);
        assert_eq!(target(&link), Some(db.vm.id));
    }
}
