//! Hosts that have held output up for nothing: a session that fails while its backup loads the first checkpoint, to try it, has cost the VM's clients
//! so long a pause, and the next one with the same host would most likely do so again. So that host rests: for twice as long as it has held output
//! up, and each further time for twice as many times as long. Other hosts are asked meanwhile.

use std::time::Duration;

use ninefold_model::HostName;

use crate::core::{Core, READY_LIMIT};
use crate::replica::Replica;
use crate::time::Monotonic;

/// A host does not rest for more than 2 to the power of this times as long as it has held output up.
const MOST_DOUBLED: u32 = 5;

/// A host that has held output up and failed, and has not been bound since. At most one for each of the VM's hosts.
pub(crate) struct Resting {
    pub(crate) host: HostName,
    /// For so long it has held output up, the last time.
    held: Duration,
    /// How often it has.
    times: u32,
    until: Monotonic,
}

impl Core {
    /// A session is lost. If output has waited for a backup that has not loaded its first checkpoint, its host rests. What comes after that waits
    /// for its disk, for 3 s at most: that may be in order again soon.
    pub(crate) fn rests(&mut self, replica: &Replica) {
        let loads = replica.tried.is_none() && replica.acked.is_none();
        let Some(since) = replica.waited_for.filter(|_| loads) else { return };
        // Longer than it is waited for at most is what this host itself stood still.
        let (host, held) = (replica.backup.clone(), self.elapsed(since).min(READY_LIMIT));
        let before = self.resting.iter().position(|r| r.host == host).map(|at| self.resting.swap_remove(at));
        let times = before.map_or(0, |r| r.times).saturating_add(1);
        let until = self.now.monotonic + held * (1 << times.min(MOST_DOUBLED));
        self.resting.push(Resting { host, held, times, until });
    }

    /// The hosts that rest now.
    pub(crate) fn who_rests(&self) -> impl Iterator<Item = &HostName> {
        let now = self.now.monotonic;
        self.resting.iter().filter(move |r| now < r.until).map(|r| &r.host)
    }

    /// What is said of them in `status`.
    pub(crate) fn why_some_rest(&self) -> Option<String> {
        let now = self.now.monotonic;
        let told = |r: &Resting| {
            let (held, left) = (r.held.as_secs(), r.until.since(now).as_secs());
            format!("{}: it held output up for {held} s and failed, and is asked again in {left} s", r.host)
        };
        let all: Vec<_> = self.resting.iter().filter(|r| now < r.until).map(told).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}
