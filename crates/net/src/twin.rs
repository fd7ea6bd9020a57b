//! Whether another station uses the Ethernet address of the guest's NIC.

use std::time::{Duration, Instant};

/// Frames that it takes, and from the first to the last of them, to be sure. A host that was frozen, lost the VM, and thaws sends a batch
/// of late frames in an instant; a VM that has just come up announces itself for 5 s.
const FRAMES: u32 = 3;
/// See [`FRAMES`].
const SPAN: Duration = Duration::from_secs(4);

/// After so long without such a frame the next one is the first of another.
const OVER: Duration = Duration::from_secs(60);

/// Pure: the caller says what time it is.
#[derive(Debug, Default)]
pub struct Twin {
    heard: Option<Heard>,
}

#[derive(Debug)]
struct Heard {
    first: Instant,
    last: Instant,
    frames: u32,
    told: bool,
}

impl Twin {
    /// A frame with the NIC's own address came from the network at `now`. True: there is another station, and it was not said yet.
    pub fn heard(&mut self, now: Instant) -> bool {
        let heard = match &mut self.heard {
            Some(heard) if now.saturating_duration_since(heard.last) < OVER => heard,
            other => other.insert(Heard { first: now, last: now, frames: 0, told: false }),
        };
        heard.last = now;
        heard.frames = heard.frames.saturating_add(1);
        let sure = heard.frames >= FRAMES && now.saturating_duration_since(heard.first) >= SPAN;
        sure && !std::mem::replace(&mut heard.told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_is_told_of_once_and_late_frames_are_none() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut twin = Twin::default();
        assert!((0..64).all(|_| !twin.heard(at(0))), "late frames of a host that thaws");
        // Those of the next freeze.
        assert!((0..64).all(|_| !twin.heard(at(90))));
        assert!(!twin.heard(at(92)));
        assert!(twin.heard(at(94)));
        assert!((95..200).all(|s| !twin.heard(at(s))), "it was said");
        let said: Vec<_> = (300..310).filter(|s| twin.heard(at(*s))).collect();
        assert_eq!(said, [304], "it has come back");
    }
}
