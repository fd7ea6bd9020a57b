//! What the guest says: held, let go, or dropped.

use ninefold_model::Epoch;

use crate::guest::Node;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    Open,
    Held,
    #[default]
    Mute,
}

/// The gate, with what waits in it.
#[derive(Debug, Default)]
pub struct GuestIo {
    pub gate: Gate,
    /// With its epoch, once that is closed.
    queue: Vec<(Option<Epoch>, Node)>,
    /// What may leave.
    allowed: Epoch,
}

impl GuestIo {
    /// The guest says something. Whether it leaves at once.
    pub fn say(&mut self, node: Node) -> bool {
        if self.gate == Gate::Held {
            self.queue.push((None, node));
        }
        self.gate == Gate::Open
    }

    pub fn hold(&mut self) {
        if self.gate != Gate::Held {
            self.allowed = Epoch(0);
        }
        self.gate = Gate::Held;
    }

    pub fn mute(&mut self) {
        *self = Self::default();
    }

    /// An epoch ends.
    pub fn seal(&mut self, epoch: Epoch) {
        self.queue.iter_mut().for_each(|(of, _)| *of = of.or(Some(epoch)));
    }

    /// Whether output of the epoch at hand waits.
    pub fn waits(&self) -> bool {
        self.queue.iter().any(|(of, _)| of.is_none())
    }

    /// All up to this epoch may leave. Answers what does; `ours` says whether it may now.
    pub fn release(&mut self, epoch: Epoch, ours: bool) -> (Vec<Node>, bool) {
        self.allowed = self.allowed.max(epoch);
        let due = |of: &Option<Epoch>| of.is_some_and(|of| of <= self.allowed);
        let at = self.queue.iter().position(|(of, _)| !due(of)).unwrap_or(self.queue.len());
        if !ours {
            return (Vec::new(), at > 0);
        }
        (self.queue.drain(..at).map(|(_, node)| node).collect(), false)
    }

    /// All leaves, in order, and what comes from now on at once.
    pub fn pass(&mut self) -> Vec<Node> {
        (self.gate, self.allowed) = (Gate::Open, Epoch(0));
        self.queue.drain(..).map(|(_, node)| node).collect()
    }
}
