//! The generation id of the VM on this host: which of its lives this is.
//!
//! A guest that has been put back (a restore, a clone, a recovery from a log) knows things that it must not use again, such as the
//! state of its random numbers. It is told by an id of that life that it has not seen before. A take-over and a switchover go on
//! with one life, and a boot with what is on the disks: the id stays. So it is noted in the pool, and a backup notes that of its
//! primary; where there is no note it follows from the VM's id.

use std::io;

use ninefold_model::Uuid;
use ninefold_volume::Note;

use crate::config::KeeperConfig;
use crate::random;

/// The note in this host's pool.
#[derive(Debug)]
pub struct Generation {
    note: Note,
    first: Uuid,
}

impl Generation {
    /// Of the VM that `config` describes.
    pub fn of(config: &KeeperConfig) -> Self {
        Self {
            note: Note::at(config.host.pool.join(format!("generation-{}", config.vm.id))),
            first: config.vm.first_generation(),
        }
    }

    /// The id to boot with.
    ///
    /// # Errors
    /// The note makes no sense, and no other can be made.
    pub fn current(&self) -> io::Result<Uuid> {
        match self.note.found() {
            None => Ok(self.first),
            // Torn by a loss of power, or damaged: an id too many does no harm.
            Some(text) => text.trim().parse().or_else(|_| self.renew()),
        }
    }

    /// A new life begins: its id. Durable when this returns, so that no later boot shows an earlier one.
    ///
    /// # Errors
    /// Those of the file system, and of random(4).
    pub fn renew(&self) -> io::Result<Uuid> {
        let generation = Uuid::random(random::bits()?);
        self.note.write(&generation.to_string())?;
        Ok(generation)
    }

    /// What this host's VM would be is of this life now.
    ///
    /// # Errors
    /// Those of the file system: a later boot here may show an earlier id.
    pub fn follow(&self, generation: Uuid) -> io::Result<()> {
        let known = self.note.found().map_or(Some(self.first), |text| text.trim().parse().ok());
        if known == Some(generation) { Ok(()) } else { self.note.write(&generation.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_lasts_until_a_new_life_begins() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| Note::at(dir.path().join(name));
        let on = |name: &str| Generation { note: at(name), first: Uuid::random(1) };
        let (a, b) = (on("a"), on("b"));
        assert_eq!(a.current().unwrap(), b.current().unwrap(), "both hosts agree without a note");
        a.follow(Uuid::random(1)).unwrap();
        assert!(!at("a").path().exists(), "nothing to note");
        let second = a.renew().unwrap();
        assert_ne!(second, Uuid::random(1));
        assert_eq!(a.current().unwrap(), second);
        b.follow(second).unwrap();
        assert_eq!(b.current().unwrap(), second);
        assert_ne!(a.renew().unwrap(), second);
        // Back to the first life, as a host knows it that has not seen the second.
        b.follow(Uuid::random(1)).unwrap();
        assert_eq!(b.current().unwrap(), Uuid::random(1));
    }

    #[test]
    fn a_note_that_makes_no_sense_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let note = Note::at(dir.path().join("note"));
        let generation = Generation { note: note.clone(), first: Uuid::random(1) };
        for bad in ["", "1b4e28ba-", "\0"] {
            note.write(bad).unwrap();
            let found = generation.current().unwrap();
            assert_ne!(found, Uuid::random(1));
            assert_eq!(generation.current().unwrap(), found, "it is kept");
        }
        assert!(Generation { note: Note::at("/nowhere/note".into()), first: Uuid::random(1) }.renew().is_err());
    }
}
