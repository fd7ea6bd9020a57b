//! A host's images of the VM's volumes: what the guest does is held, committed or goes through, as `ninefold-volume` does it.

use ninefold_model::Epoch;

use crate::guest::Node;

/// Writes by block.
pub type Writes = Vec<(usize, Node)>;

/// Of a keeper: what is held in its memory.
#[derive(Debug, Default)]
pub struct Volumes {
    holds: bool,
    alone: bool,
    open: Writes,
    sealed: Vec<(Epoch, Writes)>,
}

impl Volumes {
    /// The guest writes. What goes through is answered.
    pub fn write(&mut self, images: &mut [Node], block: usize, node: Node) -> bool {
        if self.holds {
            self.open.push((block, node));
        } else {
            images[block] = node;
        }
        !self.holds
    }

    pub fn hold(&mut self) {
        (self.holds, self.alone) = (true, false);
    }

    /// The VM runs here alone.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// An epoch ends: what was written in it.
    pub fn seal(&mut self, epoch: Epoch) -> Writes {
        let writes = std::mem::take(&mut self.open);
        if self.holds {
            self.sealed.push((epoch, writes.clone()));
        }
        writes
    }

    /// All that is held, in order.
    pub fn held(&self) -> Writes {
        self.sealed.iter().flat_map(|(_, writes)| writes).chain(&self.open).copied().collect()
    }

    /// All epochs up to this one reach the images. Answers what was written.
    pub fn commit(&mut self, images: &mut [Node], epoch: Epoch) -> Writes {
        let at = self.sealed.iter().position(|(e, _)| *e > epoch).unwrap_or(self.sealed.len());
        let done: Writes = self.sealed.drain(..at).flat_map(|(_, writes)| writes).collect();
        done.iter().for_each(|(block, node)| images[*block] = *node);
        done
    }

    /// Everything reaches the images, from now on at once.
    pub fn go_through(&mut self, images: &mut [Node]) -> Writes {
        let mut done = self.commit(images, Epoch(u64::MAX));
        done.append(&mut self.open);
        done.iter().for_each(|(block, node)| images[*block] = *node);
        (self.holds, self.alone) = (false, true);
        done
    }

    /// What has not reached the images does not.
    pub fn discard(&mut self) {
        *self = Self::default();
        self.holds = true;
    }
}
