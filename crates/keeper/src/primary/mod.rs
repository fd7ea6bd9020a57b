//! A primary: the thread that owns the running VM, the pause path, and those to whom the VM is copied.

pub mod capture;
pub mod changed_blocks;
pub mod first_copy;
pub mod freeze;
pub(crate) mod overlay;
pub mod resync;
pub(crate) mod run_state;
pub mod session;
pub mod snapshot;
pub mod target;
pub mod target_state;
pub mod vm;
pub mod waker;
