//! What a message says, as an event; what comes with it and is no data stays here.

use std::sync::mpsc::{Sender, SyncSender};

use ninefold_control::{Reply, Request};
use ninefold_core::event::{Behind, Event, JobNews, OfferId, RecoveryNews, RequestId, Seen, Source, WaiterId};
use ninefold_replica::stream::Hello;
use ninefold_transport::{LinkHandle, LinkWriter};

use super::durable::{Recovered, Snapshot};
use super::vm::Waiting;
use super::{Runtime, boottime, monotonic};
use crate::backup::loaded::Loaded;
use crate::backup::offer::Answer;
use crate::msg::{Msg, RecoveryEvent, SnapshotEvent};
use crate::primary::freeze::End;

/// A session that a primary offers.
pub(super) struct Offer {
    pub(super) id: OfferId,
    pub(super) writer: LinkWriter,
    pub(super) handle: LinkHandle,
    pub(super) go: SyncSender<Answer>,
}

impl Runtime {
    /// What the message says; nothing, if it is of what is not here any more.
    pub(super) fn event_of(&mut self, msg: Msg) -> Option<Event> {
        Some(match msg {
            Msg::Request { request, token, seen, reply } => self.request(request, token, seen, reply),
            Msg::Quit => Event::Quit,
            Msg::WitnessAnswer { id, outcome } => Event::WitnessAnswer { id, outcome },
            Msg::WitnessHolds(found) => Event::WitnessHolds(found),
            Msg::WitnessRefuses { reason } => Event::WitnessRefuses { reason },
            Msg::StartFrom { found, force } => {
                let behind = self.parts.disks.behind().map(|(volume, when)| Behind {
                    volume: volume.clone(),
                    since: Some(when).filter(|when| !when.is_empty()),
                });
                Event::StartFrom { found, force, behind }
            }
            Msg::NotAsked(why) => Event::NotAsked(why),
            Msg::WitnessRetired(tombstone) => Event::WitnessRetired(tombstone),
            Msg::RetireFrom { found, force } => Event::RetireFrom { found, force },
            Msg::RetireFailed(refusal) => Event::RetireFailed(refusal),
            Msg::Labelled(label) => Event::Labelled(label),
            Msg::Named { label, failure } => Event::Named { label, failure },
            Msg::RenameFailed(refusal) => Event::RenameFailed(refusal),
            Msg::Witness { error } => Event::Witness { error },
            Msg::VmStarted { generation, status, layout, ports, up } => {
                self.ports = Some(ports);
                Event::VmStarted { generation, status, layout, up: self.waits(up) }
            }
            Msg::VmRunning { generation } => Event::VmRunning { generation },
            Msg::Stands { generation, standing, epoch } => Event::Stands { generation, standing, epoch },
            Msg::VmLost { generation, reason } => Event::VmLost { generation, reason },
            Msg::VmShutdown { generation } => Event::VmShutdown { generation },
            Msg::Stuck { generation, step, waited } => Event::Stuck { generation, step, waited },
            Msg::GuestFailed { generation, failure } => Event::GuestFailed { generation, failure },
            Msg::DumpProgress { generation, progress } => Event::DumpProgress { generation, progress },
            Msg::Dumped { generation, outcome } => Event::Dumped { generation, outcome },
            Msg::SyncProgress { target, progress } => Event::SyncProgress { target, progress },
            Msg::FirstCheckpoint { generation, target, epoch, held } => {
                Event::FirstCheckpoint { generation, target, epoch, held: self.waits(held) }
            }
            Msg::FinalTaken { generation, epoch } => Event::FinalTaken { generation, epoch },
            Msg::CannotReplicate { generation, target, reason } => {
                Event::CannotReplicate { generation, target, reason }
            }
            Msg::BaseForgotten { generation, target } => Event::BaseForgotten { generation, target },
            Msg::VolumesSynced { session, rounds, bytes, rest } => {
                self.sessions.get_mut(&session)?.rest = Some(rest);
                Event::VolumesSynced { session, rounds, bytes }
            }
            Msg::ImageKept { trial, image, before, reason, failure } => {
                Event::ImageKept { trial, image, before, reason, failure }
            }
            Msg::PeerConnected { link } => {
                let peer = link.peer().clone();
                self.link = Some(link);
                Event::PeerConnected { peer }
            }
            Msg::NoPeer { reason } => Event::NoPeer { reason },
            Msg::Offer { hello, writer, handle, go } => self.offered(hello, writer, handle, go),
            Msg::RefusedPeer { peer, reason } => Event::RefusedPeer { peer, reason },
            Msg::Base { session, epoch, changes } => Event::Base { session, epoch, changes },
            Msg::ConfiguredOtherwise { session, differences } => Event::ConfiguredOtherwise { session, differences },
            Msg::SessionReady { session } => Event::SessionReady { session },
            Msg::SessionTried { session } => Event::SessionTried { session },
            Msg::Acked { session, epoch, sent } => Event::Acked { session, epoch, sent: sent.map(boottime) },
            Msg::Sent { session, epoch, resumed, record } => {
                Event::Sent { session, epoch, resumed: monotonic(resumed), record }
            }
            Msg::SessionEnded { session, reason } => Event::SessionEnded { session, reason },
            Msg::PeerBeat { session, up, echo } => Event::PeerBeat { session, up, echo: echo.map(boottime) },
            Msg::LogHolds { id, epoch, first, commit_bytes, bytes, commit_us } => {
                Event::LogHolds { id, epoch, first, commit_bytes, bytes, commit_us }
            }
            Msg::LogBegun { id } => Event::LogBegun { id },
            Msg::Stood { id, ticket } => Event::Stood { id, ticket },
            Msg::LogFailed { id, failure } => Event::LogFailed { id, failure },
            Msg::LogRemoved { id, removed } => Event::LogRemoved { id, removed },
            Msg::Recovery { id, news } => Event::Recovery { id, news: self.recovery_news(id, news) },
            Msg::Snapshot { id, news } => Event::Job { id, news: self.job_news(id, news) },
            Msg::Frozen { generation, end } => {
                let unsure = match end {
                    End::Unsure(reason) => Some(reason),
                    End::Untouched | End::Thawed => None,
                };
                Event::FreezeEnds { generation, unsure }
            }
            Msg::StandbyReady { session, status, base } => Event::StandbyReady { session, status, base },
            Msg::Differs { session, volume, first, bits } => Event::Differs { session, volume, first, bits },
            Msg::Tried { session } => Event::Tried { session },
            Msg::Held { session, epoch, first } => Event::Held { session, epoch, first },
            Msg::CannotAcknowledge { session, reason } => Event::CannotAcknowledge { session, reason },
            Msg::BoundTo { session, term } => Event::BoundTo { session, term },
            Msg::Relinquished { session, reason } => {
                Event::Relinquished { session, reason, silence: self.silence(session) }
            }
            Msg::PrimaryGone { session, reason } => {
                Event::PrimaryGone { session, reason, silence: self.silence(session) }
            }
            Msg::StandbyWaits { session } => Event::StandbyWaits { session },
            Msg::Loaded { session, loaded } => {
                Event::Loaded { session, loaded: self.loaded(Source::Session(session), *loaded) }
            }
            Msg::LoadFailed { session, reason } => Event::LoadFailed { session, reason },
        })
    }

    fn request(&mut self, request: Request, token: Option<String>, seen: Seen, reply: Sender<Reply>) -> Event {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.requests.insert(id, reply);
        Event::Request { id, request, token, seen }
    }

    fn waits(&mut self, thread: SyncSender<()>) -> WaiterId {
        self.last_waiter += 1;
        let id = WaiterId(self.last_waiter);
        self.waiter = Some((id, thread));
        id
    }

    fn offered(&mut self, hello: Box<Hello>, writer: LinkWriter, handle: LinkHandle, go: SyncSender<Answer>) -> Event {
        self.last_offer += 1;
        let id = OfferId(self.last_offer);
        self.offer = Some(Offer { id, writer, handle, go });
        Event::Offer { offer: id, hello }
    }

    fn recovery_news(&mut self, id: u64, news: RecoveryEvent) -> RecoveryNews {
        match news {
            RecoveryEvent::Nothing => RecoveryNews::Nothing,
            RecoveryEvent::Unusable(reason) => RecoveryNews::Unusable(reason),
            RecoveryEvent::Found { standing, epoch, term } => RecoveryNews::Found { standing, epoch, term },
            RecoveryEvent::Failed(reason) => RecoveryNews::Failed(reason),
            RecoveryEvent::Loaded { loaded, log, health } => {
                self.recovered = Some(Recovered { id, log, health });
                RecoveryNews::Loaded(self.loaded(Source::Log(id), *loaded))
            }
        }
    }

    fn job_news(&mut self, id: u64, news: SnapshotEvent) -> JobNews {
        match news {
            SnapshotEvent::Ready(target) => {
                self.snapshot = Some(Snapshot { id, target });
                JobNews::Ready
            }
            SnapshotEvent::Progress(progress) => JobNews::Progress(progress),
            SnapshotEvent::Taken(figures, freeze) => JobNews::Taken(figures, freeze),
            SnapshotEvent::Failed(reason) => JobNews::Failed(reason),
            SnapshotEvent::Loaded(loaded) => JobNews::Loaded(self.loaded(Source::Job(id), *loaded)),
            SnapshotEvent::NotLoaded(reason) => JobNews::NotLoaded(reason),
        }
    }

    /// A QEMU waits with a checkpoint loaded: what the core has to know of it.
    fn loaded(&mut self, source: Source, loaded: Loaded) -> Box<ninefold_core::event::Loaded> {
        let Loaded { machine, ports, spec, epoch, health, load_us, tracker, history, logged, stopped } = loaded;
        let tracked = tracker.is_some();
        self.waiting.push(Waiting { source, machine, ports: Some(ports), tracker, stopped });
        Box::new(ninefold_core::event::Loaded { spec, epoch, health, load_us, tracked, history, logged })
    }
}
