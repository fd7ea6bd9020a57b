//! What the VM is called on this host: a note in the pool, which survives a restart, and a link in the run directory, by which people find the VM.
//!
//! A VM has the name of its configuration until it is renamed. From then on the note counts, and the witness's label, which the note follows.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ninefold_model::Label;
use ninefold_volume::Note;

use crate::config::KeeperConfig;
use crate::error::KeeperError;
use crate::msg::Msg;
use crate::run_dir::Hold;

/// The keeper's hold on its VM, and what the VM is called here.
pub struct Naming {
    config: Arc<KeeperConfig>,
    note: Note,
    label: Label,
    hold: Hold,
}

impl Naming {
    /// Of the VM that `config` describes, which is this process's from here on.
    ///
    /// # Errors
    /// As for [`Hold::take`].
    pub fn begin(config: &Arc<KeeperConfig>) -> Result<Self, KeeperError> {
        let note = Note::at(config.host.pool.join(format!("name-{}", config.vm.id)));
        // One that was torn by a loss of power is brought by the witness again.
        let noted = note.found().and_then(|text| serde_json::from_str::<Label>(&text).ok());
        let label = noted.unwrap_or_else(|| Label { name: config.vm.name.clone(), number: 0 });
        if label.name != config.vm.name {
            tracing::info!(name = %label.name, "the VM was renamed: its configuration calls it {}", config.vm.name);
        }
        let hold = Hold::take(config, &label.name)?;
        Ok(Self { config: Arc::clone(config), note, label, hold })
    }

    /// What it is called.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// Starts a thread that calls the VM as it is told, and says what came of it. It ends when the sender is dropped, and with it the hold: the
    /// receiver is closed then.
    ///
    /// # Errors
    /// There is no thread.
    pub fn serve(self, core: Sender<Msg>) -> Result<(Sender<Label>, Receiver<()>), KeeperError> {
        let (labels, told) = channel();
        let (held, ended) = channel();
        let run = move || {
            self.run(&told, &core);
            drop(held);
        };
        thread::Builder::new().name("naming".into()).spawn(run).map_err(KeeperError::Thread)?;
        Ok((labels, ended))
    }

    fn run(mut self, told: &Receiver<Label>, core: &Sender<Msg>) {
        for label in told {
            let failure = self.take(&label).err();
            let _ = core.send(Msg::Named { label, failure });
        }
    }

    /// The link first, in one step: it shows whether the name is free here. Without the note it goes back.
    fn take(&mut self, label: &Label) -> Result<(), String> {
        let before = self.label.name.clone();
        self.rename(label)?;
        let text = serde_json::to_string(label).map_err(|error| error.to_string())?;
        // A host on which nothing was kept yet has no pool. What a loss of power takes of it is brought by the witness again.
        let pool = &self.config.host.pool;
        if let Err(error) = std::fs::create_dir_all(pool).and_then(|()| self.note.write(&text)) {
            let _ = self.hold.rename(&self.config, &before);
            return Err(format!("{} cannot be written: {error}", self.note.path().display()));
        }
        self.label = label.clone();
        Ok(())
    }

    fn rename(&mut self, label: &Label) -> Result<(), String> {
        match self.hold.rename(&self.config, &label.name) {
            Ok(None) => Ok(()),
            Ok(Some(other)) => Err(format!("this host keeps a VM called {} already: {other}", label.name)),
            Err(error) => Err(format!("the link of that name cannot be made: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::run_dir::{self, tests::config};

    fn begin(root: &Path, id: u8, name: &str) -> Naming {
        let mut config = config(root, id, name);
        config.host.pool = root.join("pool");
        Naming::begin(&Arc::new(config)).unwrap()
    }

    fn label(name: &str, number: u64) -> Label {
        Label { name: name.parse().unwrap(), number }
    }

    /// Whom a name leads to.
    fn led_to(root: &Path, name: &str) -> Option<std::path::PathBuf> {
        std::fs::canonicalize(root.join("by-name").join(name)).ok()
    }

    #[test]
    fn a_new_name_survives_a_restart_and_leaves_the_old_one_to_others() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path();
        let mut first = begin(at, 1, "db");
        assert_eq!(first.label(), &label("db", 0));
        let dir = std::fs::canonicalize(run_dir::of(at, first.config.vm.id)).unwrap();
        first.take(&label("web", 1)).unwrap();
        assert_eq!((led_to(at, "web"), led_to(at, "db")), (Some(dir.clone()), None));
        drop(first);
        // Another VM is called as the first one's configuration still calls that.
        let second = begin(at, 2, "db");
        let first = begin(at, 1, "db");
        assert_eq!(first.label(), &label("web", 1));
        assert_eq!(led_to(at, "web"), Some(dir));
        assert_ne!(led_to(at, "db"), led_to(at, "web"));
        assert_eq!(second.label(), &label("db", 0), "it inherits nothing");
    }

    #[test]
    fn a_name_that_cannot_be_had_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path();
        let (mut first, second) = (begin(at, 1, "db"), begin(at, 2, "web"));
        let said = first.take(&label("web", 1)).unwrap_err();
        assert!(said.contains(&second.config.vm.id.to_string()), "{said}");
        let links = (led_to(at, "db"), led_to(at, "web"));
        // Nor one that cannot be noted.
        std::fs::write(at.join("pool"), "no directory").unwrap();
        let said = first.take(&label("mail", 1)).unwrap_err();
        assert!(said.contains("cannot be written"), "{said}");
        assert_eq!((led_to(at, "db"), led_to(at, "web")), links);
        assert_eq!((first.label(), led_to(at, "mail")), (&label("db", 0), None));
    }
}
