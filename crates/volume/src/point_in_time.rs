//! A volume as it was at one moment, while the guest goes on with it: what is written over is saved first.
//!
//! ```text
//!   freeze (the guest stands still) ──► block 0, 1, 2, … read, each once ──► dropped
//!              │ a write reaches the image: the old content of a block that has not been read is saved before
//! ```
//!
//! What was sealed and not yet in the image at that moment lies over it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags, open};

use crate::batch::Batch;
use crate::checksums::{BLOCK, blocks};
use crate::error::VolumeError;
use crate::overlay::Overlay;
use crate::served::{Mark, ServedVolume};

/// See the [module](self). Dropped, it lets go of the volume.
pub struct PointInTime {
    served: Arc<ServedVolume>,
    shared: Arc<Shared>,
    /// As the volume knows it.
    mark: Arc<dyn Mark>,
}

impl std::fmt::Debug for PointInTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PointInTime").field("served", &self.served).finish_non_exhaustive()
    }
}

struct Shared {
    served: Arc<ServedVolume>,
    /// Without a name; blocks stand where they stand in the volume.
    saved: File,
    state: Mutex<State>,
}

struct State {
    /// Blocks that have been read or saved: bits.
    done: Vec<u64>,
    saved: Vec<u64>,
    /// What was not in the image.
    over: Overlay,
    /// A block could not be saved.
    failure: Option<String>,
}

fn has(bits: &[u64], block: u64) -> bool {
    bits.get(block as usize / 64).is_some_and(|word| word >> (block % 64) & 1 != 0)
}

fn set(bits: &mut [u64], block: u64) {
    if let Some(word) = bits.get_mut(block as usize / 64) {
        *word |= 1 << (block % 64);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn length(&self, block: u64) -> usize {
        BLOCK.min(self.served.size().saturating_sub(block * BLOCK)) as usize
    }

    fn save(&self, state: &mut State, block: u64) -> Result<(), String> {
        let mut content = vec![0; self.length(block)];
        self.served.read_image(block * BLOCK, &mut content).map_err(|e| e.to_string())?;
        // What was never written there reads as zeros: a discard of much that was empty takes no room.
        if content.iter().any(|byte| *byte != 0) {
            self.saved.write_all_at(&content, block * BLOCK).map_err(|e| e.to_string())?;
        }
        set(&mut state.saved, block);
        Ok(())
    }
}

impl Mark for Shared {
    fn before(&self, at: u64, length: u64) {
        if length == 0 {
            return;
        }
        for block in at / BLOCK..=(at + length - 1) / BLOCK {
            let mut state = self.lock();
            if has(&state.done, block) || has(&state.saved, block) || state.failure.is_some() {
                continue;
            }
            if let Err(why) = self.save(&mut state, block) {
                // The guest goes on; what is made of this has failed.
                state.failure = Some(why);
            }
        }
    }
}

impl PointInTime {
    /// Prepares it; what has to be saved goes into a file without a name in `dir`.
    ///
    /// # Errors
    /// `File`.
    pub fn new(served: Arc<ServedVolume>, dir: &Path) -> Result<Self, VolumeError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let saved = open(dir, flags, Mode::RUSR | Mode::WUSR).map_err(|error| VolumeError::File {
            what: "cannot make a file in",
            path: dir.into(),
            source: error.into(),
        })?;
        let words = blocks(served.size()).div_ceil(64) as usize;
        let saved = File::from(saved);
        let failed = |source| VolumeError::File { what: "cannot make a file in", path: dir.into(), source };
        saved.set_len(served.size()).map_err(failed)?;
        let state = State { done: vec![0; words], saved: vec![0; words], over: Overlay::default(), failure: None };
        let shared = Arc::new(Shared { served: Arc::clone(&served), saved, state: Mutex::new(state) });
        let mark = Arc::clone(&shared) as Arc<dyn Mark>;
        Ok(Self { served, shared, mark })
    }

    /// This is the moment: the guest stands still, and `queued` is what it did that may not be in the image. Does no I/O.
    pub fn freeze(&self, queued: &[Arc<Batch>]) {
        let mut state = self.shared.lock();
        for (number, batch) in (0u64..).zip(queued) {
            batch.ops().iter().for_each(|op| state.over.put(op, number));
        }
        drop(state);
        // After what is queued was looked at: what comes into the image between the two is in both.
        self.served.add_mark(Arc::clone(&self.mark));
    }

    /// The volume's size, bytes.
    pub fn size(&self) -> u64 {
        self.served.size()
    }

    /// Reads a block as it was. Each can be read once.
    ///
    /// # Errors
    /// Those of the image; `Io` if something that was written over could not be saved.
    pub fn block(&self, block: u64, into: &mut Vec<u8>) -> Result<(), VolumeError> {
        let shared = &self.shared;
        into.resize(shared.length(block), 0);
        let failed = |what, source| VolumeError::Io { what, source };
        let mut state = shared.lock();
        if let Some(why) = &state.failure {
            let source = std::io::Error::other(why.clone());
            return Err(failed("what the guest writes over cannot be saved", source));
        }
        if has(&state.saved, block) {
            shared.saved.read_exact_at(into, block * BLOCK).map_err(|e| failed("what was saved cannot be read", e))?;
        } else {
            // Under the lock: nothing is written to it meanwhile.
            shared.served.read_image(block * BLOCK, into)?;
        }
        set(&mut state.done, block);
        for piece in state.over.pieces(block * BLOCK, into.len()) {
            let place = &mut into[piece.at..piece.at + piece.length];
            match piece.data {
                Some(data) => place.copy_from_slice(data.as_ref()),
                None => place.fill(0),
            }
        }
        Ok(())
    }
}

impl Drop for PointInTime {
    fn drop(&mut self) {
        self.served.remove_mark(&self.mark);
    }
}
