//! Which VM of a host is meant: by its name, its id, or the beginning of its id.

use std::path::PathBuf;

use ninefold_keeper::run_dir::{self, Here};

use crate::error::CliError;

/// The shortest beginning of an id that is taken for one, characters.
const MIN_BEGINNING: usize = 8;

/// The run directories of the VM that is `wanted`, one for each host on this machine that has it; `roots` are those of the hosts. Of the only VM
/// there is when nothing is said. One that is not running may have left its socket: it counts, so that the command does not go to another VM than
/// yesterday.
///
/// # Errors
/// There is none, or several may be meant.
pub fn the_vm(roots: &[PathBuf], wanted: Option<&str>) -> Result<Vec<PathBuf>, CliError> {
    let all: Vec<Here> = roots.iter().flat_map(|root| run_dir::list(root)).collect();
    if all.is_empty() {
        return Err(CliError::NoneHere { roots: roots.to_vec() });
    }
    let found = match wanted {
        None => all.clone(),
        Some(wanted) => chosen(&all, wanted),
    };
    match found.first() {
        None => {
            let wanted = wanted.unwrap_or_default().chars().take(64).collect();
            Err(CliError::NotHere { wanted, here: labels(&all) })
        }
        Some(first) if found.iter().any(|here| here.id != first.id) => {
            Err(CliError::SeveralHere { vms: labels(&found) })
        }
        Some(_) => Ok(found.into_iter().map(|here| here.dir).collect()),
    }
}

/// Each VM once.
fn labels(all: &[Here]) -> Vec<String> {
    let mut labels: Vec<_> = all.iter().map(Here::label).collect();
    labels.sort();
    labels.dedup();
    labels
}

/// A name comes first: it may look like the beginning of an id.
fn chosen(all: &[Here], wanted: &str) -> Vec<Here> {
    let is_called = |here: &&Here| here.name.as_ref().is_some_and(|name| name.as_str() == wanted);
    let beginning = wanted.to_ascii_lowercase();
    let begins = |here: &&Here| beginning.len() >= MIN_BEGINNING && here.id.to_string().starts_with(&beginning);
    // A keeper that does not run has no name for its VM, which another host may have.
    match all.iter().find(is_called) {
        Some(named) => all.iter().filter(|here| here.id == named.id || is_called(here)).cloned().collect(),
        None => all.iter().filter(begins).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use ninefold_model::VmId;

    use super::*;

    fn here(id: &str, name: Option<&str>) -> Here {
        let id: VmId = id.parse().unwrap();
        Here { id, name: name.map(|name| name.parse().unwrap()), dir: id.to_string().into() }
    }

    #[test]
    fn a_vm_is_chosen_by_name_or_by_the_beginning_of_its_id() {
        let all = vec![
            here("3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", Some("db")),
            here("3f0e1c4a-8d52-4b60-9c1f-5a2e8d90b7c4", Some("web")),
            here("aaaaaaaa-7d52-4b60-9c1f-5a2e8d90b7c4", None),
            here("bbbbbbbb-7d52-4b60-9c1f-5a2e8d90b7c4", Some("3f0e1c4a-7d")),
        ];
        let found = |wanted: &str| {
            let ids = chosen(&all, wanted).into_iter().map(|h| all.iter().position(|a| *a == h).unwrap());
            ids.collect::<Vec<_>>()
        };
        assert_eq!(found("db"), [0]);
        assert_eq!(found("3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4"), [0]);
        assert_eq!(found("3F0E1C4A-8"), [1]);
        assert_eq!(found("3f0e1c4a"), [0, 1], "two may be meant");
        assert_eq!(found("3f0e1c4a-7d"), [3], "it is a name");
        assert_eq!(found("aaaaaaaa"), [2]);
        for none in ["aaaaaaa", "", "d", "DB", "cccccccc"] {
            assert_eq!(found(none), [0; 0], "{none}");
        }
    }

    #[test]
    fn the_only_vm_of_this_host_needs_no_name() {
        let root = tempfile::tempdir().unwrap();
        let here = [root.path().to_owned()];
        let none = the_vm(&[root.path().join("nowhere")], None);
        assert!(matches!(none, Err(CliError::NoneHere { .. })), "{none:?}");
        let make = |bits: u128| {
            let dir = run_dir::of(root.path(), VmId::random(bits << 96));
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("keeper.sock"), "").unwrap();
            dir
        };
        // Something else has a directory there, too.
        std::fs::create_dir(root.path().join("other")).unwrap();
        assert!(matches!(the_vm(&here, None), Err(CliError::NoneHere { .. })));
        let db = make(1);
        assert_eq!(the_vm(&here, None).unwrap(), [db.as_path()]);
        let web = make(2);
        let several = the_vm(&here, None);
        assert!(matches!(&several, Err(CliError::SeveralHere { vms }) if vms.len() == 2), "{several:?}");
        assert_eq!(the_vm(&here, Some("00000002")).unwrap(), [web]);
        let said = the_vm(&here, Some("00000003")).unwrap_err().to_string();
        assert!(said.contains("no VM '00000003'") && said.contains("00000001-"), "{said}");
        // Two hosts on one machine, one of which has never had it; and both.
        let other = tempfile::tempdir().unwrap();
        let both = [here[0].clone(), other.path().to_owned()];
        assert_eq!(the_vm(&both, Some("00000001")).unwrap(), [db.as_path()]);
        let there = run_dir::of(other.path(), VmId::random(1 << 96));
        std::fs::create_dir(&there).unwrap();
        std::fs::write(there.join("keeper.sock"), "").unwrap();
        assert_eq!(the_vm(&both, Some("00000001")).unwrap(), [db, there]);
    }
}
