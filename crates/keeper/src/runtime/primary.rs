//! The session in which this host is the backup: what is said to the primary, and what becomes of the standby.
//!
//! A thread of its own writes to the primary, so that nothing else waits for one that takes nothing.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use ninefold_core::effect::{PrimaryOrder, Word};
use ninefold_core::event::{Event, OfferId};
use ninefold_model::Term;
use ninefold_replica::stream::record::RefuseCode;
use ninefold_replica::stream::{Heartbeat, Pass, PassKind, Ready, Record, StreamError, write_record};
use ninefold_transport::{LinkHandle, LinkWriter};

use super::Runtime;
use super::inbox::Offer;
use crate::backup::offer::{Accepted, Answer, StandbyUse};
use crate::runtime::priority;

/// Words that may wait to be written. A primary that takes so few is of no use.
const WORDS: usize = 64;

/// See the [module](self).
pub(super) struct Primary {
    pub(super) session: Term,
    pub(super) handle: LinkHandle,
    /// The time in the primary's newest heartbeat, as the receiver's thread has read it.
    pub(super) echo: Arc<AtomicU64>,
    /// Dropped, the thread closes the connection when it has written what waits.
    words: SyncSender<Word>,
    /// What becomes of the standby when the primary is gone. Dropped: it is of no use.
    verdict: SyncSender<StandbyUse>,
}

impl Runtime {
    pub(super) fn accept(&mut self, offer: OfferId, session: Term, log: Option<u64>) {
        let Some(Offer { writer, handle, go, .. }) = self.offer.take_if(|o| o.id == offer) else { return };
        let log = match log.map(|id| self.logs.get(&id)) {
            None => None,
            Some(Some(log)) => Some(log.jobs.clone()),
            // It cannot be kept, as the core learns: nothing is to be acknowledged that is in no log.
            Some(None) => return,
        };
        let (verdict, heard) = sync_channel(1);
        let (words, said) = sync_channel(WORDS);
        let echo = Arc::new(AtomicU64::new(0));
        let closes = handle.clone();
        let speak = move || speak(session, writer, &closes, &said);
        if let Err(error) = thread::Builder::new().name("answer".into()).spawn(speak) {
            let reason = format!("a thread cannot be started: {error}");
            return self.answer(Event::LoadFailed { session, reason });
        }
        self.primary = Some(Primary { session, handle, echo: Arc::clone(&echo), words, verdict });
        let _ = go.send(Answer::Accepted(Accepted { log, verdict: heard, echo }));
    }

    /// The offer's own thread writes it.
    pub(super) fn refuse(&mut self, offer: OfferId, reason: String) {
        if let Some(Offer { writer, go, .. }) = self.offer.take_if(|o| o.id == offer) {
            let _ = go.send(Answer::Refused { writer, reason });
        }
    }

    pub(super) fn primary(&mut self, session: Term, order: PrimaryOrder) {
        let Some(primary) = self.primary.as_ref().filter(|p| p.session == session) else { return };
        match order {
            PrimaryOrder::Say(word) => {
                if primary.words.try_send(word).is_err() {
                    // It takes nothing: that shows as the end of the stream.
                    primary.handle.shutdown();
                }
            }
            PrimaryOrder::Load { others } => drop(primary.verdict.try_send(StandbyUse::Load { others })),
            PrimaryOrder::Park => drop(primary.verdict.try_send(StandbyUse::Park)),
            PrimaryOrder::Cut => primary.handle.shutdown(),
            PrimaryOrder::Drop => self.primary = None,
        }
    }

    /// For how long the primary of this session has said nothing.
    pub(super) fn silence(&self, session: Term) -> Duration {
        let primary = self.primary.as_ref().filter(|p| p.session == session);
        primary.map_or(Duration::ZERO, |p| p.handle.silence())
    }
}

/// Writes what is said to the primary, until nothing more is. A word that cannot be written, or not in time, is lost, or half of it is: the
/// connection ends with it, since what came after it would be taken for all that was said.
fn speak(session: Term, mut writer: LinkWriter, handle: &LinkHandle, said: &Receiver<Word>) {
    priority::raise();
    let mut scratch = Vec::new();
    while let Ok(word) = said.recv() {
        let written = write(session, &mut writer, &mut scratch, &word).map_err(io::Error::other);
        if let Err(error) = written.and_then(|()| writer.flush()) {
            tracing::warn!(%session, %error, "the primary takes nothing more");
            break;
        }
    }
    handle.shutdown();
}

fn write(session: Term, writer: &mut LinkWriter, scratch: &mut Vec<u8>, word: &Word) -> Result<(), StreamError> {
    let name = session.0;
    let record = match word {
        Word::Base { epoch, changes } => Record::Base { session: name, epoch: *epoch, changes },
        Word::Differences { json } => Record::Differences { session: name, json },
        Word::Ready => Record::Ready { session: name, what: Ready::Receive },
        Word::Tried => Record::Ready { session: name, what: Ready::TakeOver },
        Word::VolumeDiffers { volume, first, bits } => {
            Record::VolumeDiffers { session: name, volume: *volume, first: *first, bits }
        }
        Word::Ack { epoch } => Record::Ack { pass: Pass { session: name, kind: PassKind::Checkpoint, epoch: *epoch } },
        Word::Heartbeat { seq, uplink, echo_us } => {
            Record::Heartbeat(Heartbeat { session: name, seq: *seq, uplink: *uplink, time_us: *echo_us })
        }
        Word::Refuse { reason } => Record::Refuse { code: RefuseCode::Busy, reason },
    };
    write_record(writer, scratch, &record).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use ninefold_transport::{Listener, Security, connect};

    use super::*;

    /// Only so that a failure ends.
    const LIMIT: Duration = Duration::from_secs(60);

    /// A primary that takes nothing for a while, and goes on then, would miss a word and hear those after it.
    #[test]
    fn a_word_that_is_not_written_in_time_ends_the_connection() {
        let plain = |host: &str| Security::PlainText { host: host.parse().unwrap() };
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), plain("b")).unwrap();
        let addr = listener.local_addr();
        let accepting = thread::spawn(move || listener.accept().unwrap().handshake(LIMIT).unwrap());
        let primary = connect(addr, &"b".parse().unwrap(), &plain("a"), LIMIT).unwrap();
        let ours = accepting.join().unwrap();
        let handle = ours.handle();
        handle.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        let (_reader, writer) = ours.split();
        let (words, said) = sync_channel(WORDS);
        let (ends, ended) = channel();
        thread::spawn(move || {
            speak(Term(5), writer, &handle, &said);
            ends.send(()).unwrap();
        });
        // The kernel takes some; then a word waits until its time is over.
        let long = || Word::Refuse { reason: "x".repeat(1000) };
        let begun = Instant::now();
        while words.send(long()).is_ok() {
            assert!(begun.elapsed() < LIMIT, "the connection goes on without the words that were lost");
        }
        ended.recv_timeout(LIMIT).unwrap();
        let (mut reader, _writer) = primary.split();
        let mut sink = [0; 64 << 10];
        while reader.read(&mut sink).is_ok_and(|read| read > 0) {}
    }
}
