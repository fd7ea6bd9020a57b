//! What has to be looked at on a disk before a request is put to the core.
//!
//! A disk may not answer: it is looked at in the thread of the client who asks, so that the core's thread never waits for it. One looks at a
//! time, so that a disk that hangs takes the place of one client and not of all.

use std::sync::{Arc, Mutex, TryLockError};

use ninefold_control::{Mixture, Request};
use ninefold_core::event::Seen;
use ninefold_model::health::{HealthySign, MAX_IMAGE};
use ninefold_model::spec::Boot;

use crate::config::KeeperConfig;
use crate::devices::disks::Disks;
use crate::durable::mixture::Cause;
use crate::durable::unfinished::Unfinished;
use crate::run_dir;

/// See the [module](self).
pub struct Preflight {
    see: Box<dyn Fn(&Request) -> Seen + Send + Sync>,
    at_work: Mutex<()>,
}

impl Preflight {
    /// At the VM's volumes on this host, and at images.
    pub fn at(config: Arc<KeeperConfig>, disks: Arc<Disks>) -> Self {
        Self::by(move |request| see(request, &config, &disks))
    }

    /// By this function.
    pub fn by(see: impl Fn(&Request) -> Seen + Send + Sync + 'static) -> Self {
        Self { see: Box::new(see), at_work: Mutex::new(()) }
    }

    /// What the core has to know for this request. None: another client's look has not ended.
    pub fn before(&self, request: &Request) -> Option<Seen> {
        if !matches!(
            request,
            Request::Start { .. } | Request::Restore { .. } | Request::Trial { .. } | Request::Rename { .. }
        ) {
            return Some(Seen::default());
        }
        let _one = match self.at_work.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(one)) => one.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some((self.see)(request))
    }
}

fn see(request: &Request, config: &KeeperConfig, disks: &Disks) -> Seen {
    match request {
        Request::Start { .. } | Request::Restore { .. } => Seen {
            mixture: disks.mixture().found().map(|cause| match cause {
                Cause::Resync => Mixture::Resync,
                Cause::Log => Mixture::Log,
                Cause::Restore => Mixture::Restore,
            }),
            unfinished: Unfinished::left(config),
            ..Seen::default()
        },
        Request::Rename { name } => {
            Seen { taken: run_dir::whose(&config.host.run_dir, name, config.vm.id), ..Seen::default() }
        }
        Request::Trial { image, sign, .. } => Seen { unusable: usable(image, sign).err(), ..Seen::default() },
        _ => Seen::default(),
    }
}

/// Preflight whether the image can be tried here.
///
/// # Errors
/// Why not: its description, or a file of it.
fn usable(image: &Boot, sign: &HealthySign) -> Result<(), String> {
    let size = serde_json::to_vec(&(image, sign)).map_or(usize::MAX, |text| text.len());
    if size > MAX_IMAGE {
        return Err(format!("the image's description has {size} bytes: {MAX_IMAGE} are possible"));
    }
    if matches!(sign, HealthySign::Console { text } if text.is_empty()) {
        return Err("an empty text is no sign of health".into());
    }
    let files = match image {
        Boot::Linux { kernel, initrd, .. } => vec![Some(kernel), initrd.as_ref()],
        Boot::BootSector { image } => vec![Some(image)],
        // Its volume is where the committed image is, too: there would be nothing to fall back to.
        Boot::Volume => return Err("a trial needs an image of its own: the VM's volume is none".into()),
    };
    for path in files.into_iter().flatten() {
        if !path.is_absolute() {
            return Err(format!("{} is no absolute path", path.display()));
        }
        match std::fs::metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(format!("{} is no file", path.display())),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    Ok(())
}
