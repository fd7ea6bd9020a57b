//! A primary's sessions.

use std::sync::Arc;

use ninefold_core::effect::{Close, Known, SessionOrder};
use ninefold_core::event::Event;
use ninefold_model::{HostName, Term};
use ninefold_replica::stream::Hello;

use super::Runtime;
use crate::error::report;
use crate::primary::changed_blocks::ChangedBlocks;
use crate::primary::resync::{self, Differing};
use crate::primary::session::{self, Session, Settings};

/// A session that is open.
pub(super) struct Open {
    pub(super) session: Session,
    /// What of the volumes goes with the first checkpoint.
    pub(super) rest: Option<ChangedBlocks>,
}

impl Runtime {
    pub(super) fn session(&mut self, session: Term, order: SessionOrder) {
        match order {
            SessionOrder::Open { peer, hello } => self.open(session, &peer, *hello),
            SessionOrder::Sync { known } => self.sync(session, known),
            SessionOrder::Bound(term) => {
                if let Some(open) = self.sessions.get(&session) {
                    open.session.bound(term);
                }
            }
            SessionOrder::Relinquish { epoch, reason } => {
                if let Some(open) = self.sessions.get(&session) {
                    open.session.relinquish(epoch, reason);
                }
            }
            SessionOrder::Close(close) => {
                let Some(Open { session, .. }) = self.sessions.remove(&session) else { return };
                match close {
                    Close::Cut => drop(session),
                    Close::Finish => session.finish(),
                    Close::Farewell => {
                        session.bye("the session has ended");
                        session.finish();
                    }
                }
            }
        }
    }

    fn open(&mut self, name: Term, peer: &HostName, hello: Hello) {
        let Some(link) = self.link.take().filter(|link| link.peer() == peer) else {
            return self.answer(Event::SessionEnded { session: name, reason: "the peer is gone".into() });
        };
        let parts = &self.parts;
        let settings = Settings {
            heartbeat: parts.config.vm.policy.timing.heartbeat(),
            uplink: Arc::clone(&self.uplink),
            disks: Arc::clone(&parts.disks),
            waker: parts.waker.clone(),
        };
        match session::open(link, hello, settings, parts.core.clone()) {
            Ok(session) => drop(self.sessions.insert(name, Open { session, rest: None })),
            Err(error) => self.answer(Event::SessionEnded { session: name, reason: report(&error) }),
        }
    }

    /// Makes the backup's volumes equal, in a thread.
    fn sync(&mut self, session: Term, known: Option<Known>) {
        let Some(open) = self.sessions.get_mut(&session) else { return };
        let Some(comparison) = open.session.comparison.take() else { return };
        let jobs = open.session.jobs.clone();
        let written = known.and_then(|Known { basis, blocks }| {
            let (_, written) = self.written.iter().find(|(of, _)| *of == basis)?;
            Some(Differing::Known { blocks, written: written.clone() })
        });
        let differing = written.unwrap_or(Differing::Compared(comparison));
        let (disks, core) = (Arc::clone(&self.parts.disks), self.parts.core.clone());
        if let Err(error) = resync::start(session, disks, jobs, differing, core) {
            self.answer(Event::SessionEnded { session, reason: report(&error) });
        }
    }
}
