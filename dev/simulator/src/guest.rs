//! The guest: what it has done, step by step. Each step is a node of a tree, so that of two states it can be told whether one has come
//! from the other. A guest that runs again from a checkpoint does something else than before: its steps are other nodes.

use ninefold_model::health::Health;

/// A step that a guest has made. 0: its boot.
pub type Node = u32;

/// Blocks of each volume.
pub const BLOCKS: usize = 6;

/// Pages of the guest's memory.
pub const PAGES: usize = 6;

/// What pages or blocks get: which, and by which step.
pub type Writes = Vec<(usize, Node)>;

/// All steps of all guests of a run.
#[derive(Debug)]
pub struct Steps(Vec<(Node, u32)>);

impl Default for Steps {
    fn default() -> Self {
        Self(vec![(0, 0)])
    }
}

impl Steps {
    /// Another step after `node`.
    pub fn after(&mut self, node: Node) -> Node {
        let depth = self.0[node as usize].1 + 1;
        self.0.push((node, depth));
        (self.0.len() - 1) as Node
    }

    /// Whether a guest that stands at `later` has made the step `earlier`.
    pub fn has(&self, later: Node, earlier: Node) -> bool {
        let depth = self.0[earlier as usize].1;
        let mut at = later;
        while self.0[at as usize].1 > depth {
            at = self.0[at as usize].0;
        }
        at == earlier
    }
}

/// A guest: where it stands, what is in its memory, and what it has written to its volumes, by the step of the last write to each page and block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub at: Node,
    pub memory: Vec<Node>,
    pub disk: Vec<Node>,
    pub off: bool,
    /// What its checkpoints say of its health: how it stands, and whether it has failed.
    pub health: Health,
}

impl Guest {
    /// One that boots from these images.
    pub fn boots(at: Node, images: &[Node]) -> Self {
        Self { at, memory: vec![at; PAGES], disk: images.to_vec(), off: false, health: Health::default() }
    }

    /// It does something, if it is let.
    pub fn runs(&self) -> bool {
        self.health.standing.runs() && self.health.pending.is_none()
    }
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub epoch: ninefold_model::Epoch,
    pub guest: Guest,
    /// What it wrote in the epoch.
    pub writes: Writes,
}
