//! Checkpoints as measured, of keepers that come and go.

use std::collections::HashMap;

use ninefold_model::checkpoint::CheckpointRecord;

use crate::lab::Lab;
use ninefold_model::series::{Series, Summary};

/// Collects each keeper's checkpoint records, each record once.
#[derive(Debug, Default)]
pub struct Checkpoints {
    /// By the keeper's process number: the number of its last record collected.
    seen: HashMap<u32, u64>,
    records: Vec<CheckpointRecord>,
}

impl Checkpoints {
    /// Fetches what a host's keeper has measured since the last time. A keeper that does not answer adds nothing: its
    /// latest records go with it.
    pub fn collect(&mut self, lab: &Lab, host: &str) {
        let Ok(keeper) = lab.keeper(host) else { return };
        let Ok(status) = keeper.status() else { return };
        let after = self.seen.entry(status.pid).or_default();
        let Ok(new) = keeper.checkpoints(*after) else { return };
        *after = new.last().map_or(*after, |r| r.seq);
        self.records.extend(new);
    }

    /// All of them, in order of collection.
    pub fn records(&self) -> &[CheckpointRecord] {
        &self.records
    }

    /// The guest's pauses, microseconds.
    pub fn pauses(&self) -> Summary {
        self.records.iter().map(|r| r.pause_us).collect::<Series>().summary()
    }
}
