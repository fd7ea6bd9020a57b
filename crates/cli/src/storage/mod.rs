//! `ninefold volume`, `ninefold image` and `ninefold snapshot`: what is in a host's storage pool.
//!
//! * [`volume`]: the disks of VMs · [`image`]: golden images, which disks are made from · [`snapshot`]: VMs at one moment
//! * [`show`]: what people see of them · [`size`], [mod@file]: arguments · [`work`]: what takes its time · [mod@help]: advice

mod file;
mod help;
pub mod image;
mod show;
mod size;
pub mod snapshot;
pub mod volume;
mod work;

use std::path::{Path, PathBuf};

use clap::Args;
pub use help::help;
use ninefold_keeper::config::DEFAULT_POOL;
use ninefold_shell::ShellError;
use ninefold_volume::{Pool, Tools, VolumeError};

use crate::error::CliError;

/// Which pool.
#[derive(Debug, Args)]
struct At {
    /// The host's storage pool, as in the keeper's configuration
    #[arg(long = "pool", value_name = "DIR", default_value = DEFAULT_POOL)]
    root: PathBuf,
}

impl At {
    /// The pool, which has to be there.
    fn open(&self) -> Result<Pool, CliError> {
        if !Pool::is_at(&self.root) {
            return Err(CliError::NoPool { pool: self.root.clone() });
        }
        self.make()
    }

    /// The pool; makes it if it is not there.
    fn make(&self) -> Result<Pool, CliError> {
        Pool::open(&self.root, Tools::default()).map_err(in_pool(&self.root))
    }
}

/// What went wrong in a pool: `.map_err(in_pool(root))`.
fn in_pool(pool: &Path) -> impl Fn(VolumeError) -> CliError {
    |source| match source {
        VolumeError::Cancelled => ShellError::Interrupted.into(),
        source => CliError::Volume { pool: pool.into(), source: Box::new(source) },
    }
}
