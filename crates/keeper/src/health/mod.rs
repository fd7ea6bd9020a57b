//! The guest's health as it is seen from outside: its watchdog and its panics, and which image it runs.
//!
//! ```text
//!   QEMU ──WATCHDOG, GUEST_PANICKED──► VM's thread (watcher) ──Failed──► core ──► policy
//!    ▲                                       │        ▲                            │
//!    └── system_reset, dump-guest-memory ────┘        └── Reset, Dump ─────────────┤
//!                                                                                  ├─► relaunch with another image
//!   checkpoint ◄── what a backup must know to go on watching ◄── told ◄────────────┤
//!                                                                                  └─► images: the committed one, on disk
//! ```
//!
//! * [policy](ninefold_core::policy): what is done about a failure; trials of images. Pure, a part of the core
//! * [`watcher`]: the VM's thread's part: it finds failures, resets, dumps
//! * [`shared`]: what travels to a backup
//! * [`images`]: the committed image, kept on disk · [`dumps`]: the directory of memory dumps
//!
//! A failure is acted on once in the history that counts, that of committed checkpoints: it is either not yet in the
//! checkpoint from which a backup goes on (then it happens there again), or the checkpoint says that it is and that nobody has
//! acted on it (then the backup does), or the action is in it as well.

pub mod dumps;
pub mod images;
pub mod shared;
pub mod watcher;
