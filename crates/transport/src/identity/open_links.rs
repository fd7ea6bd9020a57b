//! The links that are up, by the certificates that their peers have shown: a host that is revoked loses those that it has.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use ninefold_model::HostName;
use rustls::pki_types::CertificateDer;
use webpki::KeyUsage;

use super::loaded::Loaded;
use crate::link::Open;

/// One link.
pub(super) struct Up {
    pub(super) peer: HostName,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) usage: KeyUsage,
    pub(super) link: Weak<Open>,
}

/// All of them.
pub(super) struct OpenLinks(Mutex<Links>);

struct Links {
    up: Vec<Up>,
    /// With as many, those that have ended are let go of.
    sweep_at: usize,
}

const FEW: usize = 64;

/// A host whose links were ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) peer: HostName,
    pub(super) links: usize,
    pub(super) reason: String,
}

impl OpenLinks {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Links { up: Vec::new(), sweep_at: FEW }))
    }

    /// Takes a link whose handshake has ended, unless its peer has ceased to be trusted since that began: the handshake has used
    /// `used`, and `current` gives what is in use now.
    pub(super) fn admit(
        &self,
        link: Up,
        used: &Arc<Loaded>,
        current: impl FnOnce() -> Arc<Loaded>,
    ) -> Result<(), String> {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = current();
        if !Arc::ptr_eq(used, &current)
            && let Some(objection) = current.objection(&link.chain, link.usage)
        {
            return Err(objection);
        }
        if links.up.len() >= links.sweep_at {
            links.up.retain(|up| up.link.strong_count() > 0);
            links.sweep_at = FEW.max(2 * links.up.len());
        }
        links.up.push(link);
        Ok(())
    }

    /// Ends the links with all that are not trusted any more. What is in use must have been exchanged before: a handshake that ends
    /// meanwhile is judged by that.
    pub(super) fn end_distrusted(&self, loaded: &Loaded) -> Vec<Ended> {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended: Vec<Ended> = Vec::new();
        links.up.retain(|up| {
            let Some(link) = up.link.upgrade() else { return false };
            let Some(reason) = loaded.objection(&up.chain, up.usage) else { return true };
            link.end();
            match ended.iter_mut().find(|e| e.peer == up.peer && e.reason == reason) {
                Some(known) => known.links += 1,
                None => ended.push(Ended { peer: up.peer.clone(), links: 1, reason }),
            }
            false
        });
        ended
    }
}
