//! The note that volumes are being overwritten from a snapshot.

use ninefold_model::SnapshotName;
use ninefold_volume::Note;

use crate::config::KeeperConfig;

/// A note in the pool that volumes are being overwritten: what a crash leaves of them must not be booted.
pub struct Unfinished(Note);

impl Unfinished {
    /// The note. It goes when a primary has filled the volumes, too: see [`crate::durable::mixture`].
    pub fn of(config: &KeeperConfig) -> Note {
        Note::at(config.host.pool.join(format!("restoring-{}", config.vm.id)))
    }

    pub fn begin(config: &KeeperConfig, name: &SnapshotName) -> Result<Self, String> {
        let note = Self::of(config);
        note.write(name.as_str()).map_err(|e| format!("{}: {e}", note.path().display()))?;
        Ok(Self(note))
    }

    pub fn end(self) -> Result<(), String> {
        self.0.remove().map_err(|e| format!("{}: {e}", self.0.path().display()))
    }

    /// Which snapshot was being restored when this host lost its power or its keeper, if one was.
    pub fn left(config: &KeeperConfig) -> Option<String> {
        Some(Self::of(config).found()?.chars().take(64).collect())
    }
}
