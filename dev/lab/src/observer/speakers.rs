//! Turns of speakers: frames in order of time become spans, and spans are held against what the keepers say.
//!
//! ```text
//! frames   a a a a   b b b b b      a    b b b      a a a …
//! spans    └──a──┘   └───b───┘      a    └─b─┘      └─a──
//! takeovers        b│                             a│
//! verdict                        1 late frame
//! ```
//!
//! A frame alone does not tell whether its host may speak again or is merely late. So the number of turns of an honest
//! run is its number of takeovers, and a span of a host that is neither the reigning speaker nor the next one by the
//! keepers' account is late.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Frames younger than this may still be joined by an older one from another socket.
const SETTLE: Duration = Duration::from_millis(200);
/// Most spans kept; later ones are counted only.
const MAX_SPANS: usize = 1 << 16;
/// Most frames that wait to settle; beyond it the oldest are settled early.
const MAX_RECENT: usize = 1 << 20;
/// A new speaker's first frame can be a little older than the event that announces it.
pub const EVENT_SLACK: Duration = Duration::from_millis(250);

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameKind {
    /// RARP, a gratuitous ARP or an unsolicited neighbour advertisement: it tells where the VM is.
    Announcement,
    Other,
}

impl FrameKind {
    /// Looks at a frame's head. RFC 903; RFC 5227 section 3; RFC 4861 section 4.4 (type 136, S flag 0).
    pub fn of(frame: &[u8]) -> Self {
        let announcement = match frame.get(12..14) {
            Some([0x80, 0x35]) => true,
            Some([0x08, 0x06]) => matches!((frame.get(28..32), frame.get(38..42)), (Some(s), Some(t)) if s == t),
            Some([0x86, 0xdd]) => {
                frame.get(20) == Some(&58)
                    && frame.get(54) == Some(&136)
                    && frame.get(58).is_some_and(|flags| flags & 0x40 == 0)
            }
            _ => false,
        };
        if announcement { FrameKind::Announcement } else { FrameKind::Other }
    }
}

/// A frame with the VM's source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// When it entered the switch: CLOCK_MONOTONIC, nanoseconds.
    pub at_ns: u64,
    /// Which host it came from: its place in the list of hosts.
    pub host: usize,
    pub kind: FrameKind,
    /// Bytes.
    pub length: u32,
}

/// A turn: frames of one host with none of another between them. Times are CLOCK_MONOTONIC, nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub host: String,
    pub first_ns: u64,
    pub last_ns: u64,
    pub frames: u64,
    pub announcements: u64,
    pub bytes: u64,
}

/// A host began to speak for the VM, by its keeper's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    pub host: String,
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
}

/// Frames of a host that was not the speaker any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    pub host: String,
    /// Who spoke at that time.
    pub speaker: String,
    pub frames: u64,
    /// How long after the speaker's first frame the last of them came.
    pub late_by: Duration,
}

/// What an observer saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The turns, in order of time.
    pub spans: Vec<Span>,
    /// Turns that are not in `spans` because there were too many.
    pub spans_beyond: u64,
    /// Frames that the kernel could not keep for the observer. Not 0: the report proves nothing.
    pub missed: u64,
}

impl Report {
    /// How often the speaker changed. In an honest run: once per takeover by another host.
    pub fn alternations(&self) -> u64 {
        (self.spans.len().saturating_sub(1)) as u64 + self.spans_beyond
    }

    /// Frames of a host.
    pub fn frames(&self, host: &str) -> u64 {
        self.spans.iter().filter(|s| s.host == host).map(|s| s.frames).sum()
    }

    /// The frames that came from a host that was no longer the speaker, given who took over and when (the first one
    /// being the host that booted the VM). Empty: at no time did two hosts speak.
    pub fn overlaps(&self, takeovers: &[Takeover]) -> Vec<Late> {
        let slack = EVENT_SLACK.as_nanos() as u64;
        let mut late = Vec::new();
        let mut reign: Option<(&str, u64)> = None;
        let mut next = 0;
        for span in &self.spans {
            // The last of this host's takeovers that can have been: one whose host never said anything counts as past.
            let open = takeovers.get(next..).unwrap_or_default();
            let past = open.partition_point(|t| t.monotonic_ns <= span.last_ns.saturating_add(slack));
            let found = open[..past].iter().rposition(|t| t.host == span.host);
            match (reign, found) {
                (Some((speaker, _)), _) if speaker == span.host => {
                    // It may have taken over once more (from one that never spoke).
                    next += found.map_or(0, |at| at + 1);
                }
                (_, Some(ahead)) => {
                    next += ahead + 1;
                    reign = Some((&span.host, span.first_ns));
                }
                (Some((speaker, since)), None) => late.push(Late {
                    host: span.host.clone(),
                    speaker: speaker.to_owned(),
                    frames: span.frames,
                    late_by: Duration::from_nanos(span.last_ns.saturating_sub(since)),
                }),
                // It speaks although no keeper said so.
                (None, None) => late.push(Late {
                    host: span.host.clone(),
                    speaker: String::new(),
                    frames: span.frames,
                    late_by: Duration::ZERO,
                }),
            }
        }
        late
    }
}

/// Turns frames into spans in bounded memory.
#[derive(Debug)]
pub(super) struct Speakers {
    hosts: Vec<String>,
    /// In order of time, not yet settled.
    recent: VecDeque<Frame>,
    report: Report,
    /// The host of the last settled frame.
    current: Option<usize>,
    /// How often the observer has read all its sockets.
    pub turns: u64,
    pub missed: u64,
}

impl Speakers {
    pub fn new(hosts: Vec<String>) -> Self {
        Self { hosts, recent: VecDeque::new(), report: Report::default(), current: None, turns: 0, missed: 0 }
    }

    /// Frames in any order, none of them much older than the ones before.
    pub fn add(&mut self, frames: &[Frame]) {
        self.recent.extend(frames);
        // Nearly sorted already, which this sort is quick on.
        self.recent.make_contiguous().sort_by_key(|f| f.at_ns);
        let Some(newest) = self.recent.back().map(|f| f.at_ns) else { return };
        let settled = newest.saturating_sub(SETTLE.as_nanos() as u64);
        while self.recent.front().is_some_and(|f| f.at_ns < settled) || self.recent.len() > MAX_RECENT {
            if let Some(frame) = self.recent.pop_front() {
                note(&mut self.report, &self.hosts, &mut self.current, frame);
            }
        }
    }

    /// All frames up to now.
    pub fn report(&self) -> Report {
        let mut report = self.report.clone();
        let mut current = self.current;
        for frame in &self.recent {
            note(&mut report, &self.hosts, &mut current, *frame);
        }
        report.missed = self.missed;
        report
    }
}

fn note(report: &mut Report, hosts: &[String], current: &mut Option<usize>, frame: Frame) {
    if current.replace(frame.host) != Some(frame.host) {
        if report.spans.len() >= MAX_SPANS {
            report.spans_beyond += 1;
            return;
        }
        report.spans.push(Span {
            host: hosts.get(frame.host).cloned().unwrap_or_default(),
            first_ns: frame.at_ns,
            last_ns: frame.at_ns,
            frames: 0,
            announcements: 0,
            bytes: 0,
        });
    }
    if let Some(span) = report.spans.last_mut().filter(|_| report.spans_beyond == 0) {
        span.last_ns = frame.at_ns;
        span.frames += 1;
        span.announcements += u64::from(frame.kind == FrameKind::Announcement);
        span.bytes += u64::from(frame.length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Frames of the hosts named by letters, 1 s apart.
    fn seen(letters: &str) -> Speakers {
        let mut speakers = Speakers::new(vec!["a".into(), "b".into()]);
        for (i, letter) in letters.bytes().enumerate() {
            let at_ns = (i as u64 + 1) * 1000 * MS;
            let host = usize::from(letter == b'b');
            speakers.add(&[Frame { at_ns, host, kind: FrameKind::Other, length: 60 }]);
        }
        speakers
    }

    fn takeovers(list: &[(&str, u64)]) -> Vec<Takeover> {
        list.iter().map(|(h, s)| Takeover { host: (*h).into(), monotonic_ns: s * 1000 * MS }).collect()
    }

    #[test]
    fn an_honest_run_has_no_overlap() {
        let report = seen("aaabbbaa").report();
        assert_eq!(report.alternations(), 2);
        assert_eq!((report.frames("a"), report.frames("b")), (5, 3));
        assert_eq!(report.overlaps(&takeovers(&[("a", 1), ("b", 4), ("a", 7)])), []);
    }

    #[test]
    fn a_late_frame_is_found_also_when_its_host_takes_over_again_later() {
        let report = seen("aaabbabbaa").report();
        let late = report.overlaps(&takeovers(&[("a", 1), ("b", 4), ("a", 9)]));
        assert_eq!(late.len(), 1);
        assert_eq!((late[0].host.as_str(), late[0].frames, late[0].late_by.as_secs()), ("a", 1, 2));
    }

    #[test]
    fn one_who_speaks_unasked_is_found() {
        let late = seen("aaab").report().overlaps(&takeovers(&[("a", 1)]));
        assert_eq!((late[0].host.as_str(), late[0].speaker.as_str()), ("b", "a"));
        assert_eq!(seen("a").report().overlaps(&[]).len(), 1);
    }

    #[test]
    fn frames_from_two_sockets_are_put_in_order() {
        let mut speakers = Speakers::new(vec!["a".into(), "b".into()]);
        let frame = |at_ns, host| Frame { at_ns: at_ns * MS, host, kind: FrameKind::Other, length: 1 };
        speakers.add(&[frame(10, 1), frame(30, 1)]);
        speakers.add(&[frame(20, 0)]);
        let hosts: Vec<_> = speakers.report().spans.into_iter().map(|s| s.host).collect();
        assert_eq!(hosts, ["b", "a", "b"]);
    }

    #[test]
    fn kinds_of_frame() {
        let mut arp = [0u8; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        arp[28..32].copy_from_slice(&[10, 9, 0, 10]);
        assert_eq!(FrameKind::of(&arp), FrameKind::Other);
        arp[38..42].copy_from_slice(&[10, 9, 0, 10]);
        assert_eq!(FrameKind::of(&arp), FrameKind::Announcement);
        assert_eq!(FrameKind::of(&[]), FrameKind::Other);
        let mut rarp = [0u8; 60];
        rarp[12..14].copy_from_slice(&[0x80, 0x35]);
        assert_eq!(FrameKind::of(&rarp), FrameKind::Announcement);
    }
}
