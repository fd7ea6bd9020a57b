//! When a suspended guest is to wake by its real-time clock.
//!
//! QEMU wakes a guest by the alarm only if it is suspended, and not stopped, in the very moment at which the alarm falls due: one
//! that falls due in a pause, or while no host has the guest, is lost. So the saved device state is asked for the alarm, and
//! whoever has the guest wakes it when it has overslept.

/// The alarm of a guest's real-time clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// None is set.
    Off,
    /// By the host's wall clock, nanoseconds since 1970; 0 when it has fallen due, and the guest has not seen it yet.
    At(i64),
}

/// What a saved device state says: QEMU's section `mc146818rtc`, version 3: an instance (32 bits, 0), the version (32 bits), 128
/// bytes of registers, then numbers up to the time of the next alarm, nanoseconds of the host's wall clock. All big-endian.
/// Does not allocate.
pub(crate) fn saved(state: &[u8]) -> Alarm {
    const HEAD: &[u8] = b"\x0bmc146818rtc\0\0\0\0\0\0\0\x03";
    /// Register B has the permission to interrupt, C that the alarm has fallen due; both in this bit.
    const BIT: u8 = 0x20;
    /// Registers, the chosen one, what is not used (28), a timer, its time, what is not used (24), two words, three long
    /// ones, a timer.
    const NEXT: usize = 128 + 1 + 28 + 8 + 8 + 24 + 4 + 4 + 8 + 8 + 8 + 8;
    let mut found = state.windows(HEAD.len() + NEXT + 8).filter(|window| window.starts_with(HEAD));
    let (Some(section), None) = (found.next().and_then(|w| w.get(HEAD.len()..)), found.next()) else {
        return Alarm::Off;
    };
    let register = |n: usize| section.get(n).is_some_and(|register| register & BIT != 0);
    let next = section.get(NEXT..NEXT + 8).and_then(|bytes| bytes.try_into().ok()).map(i64::from_be_bytes);
    match (register(0x0b), register(0x0c), next) {
        (true, true, _) => Alarm::At(0),
        (true, false, Some(next)) => Alarm::At(next),
        _ => Alarm::Off,
    }
}

impl Alarm {
    /// Whether it has fallen due.
    pub(crate) fn is_due(self, now_ns: i64) -> bool {
        matches!(self, Alarm::At(at) if at <= now_ns)
    }

    /// What is known when a later state says `later`. One that has fallen due is so until the guest is woken: QEMU would name that of
    /// the next day.
    pub(crate) fn or_later(self, later: Alarm, now_ns: i64) -> Alarm {
        if self.is_due(now_ns) { self } else { later }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(b: u8, c: u8, next: i64) -> Vec<u8> {
        let mut registers = [0; 128];
        (registers[0x0b], registers[0x0c]) = (b, c);
        let numbers = [0; 1 + 28 + 8 + 8 + 24 + 4 + 4 + 8 + 8 + 8 + 8];
        [b"..\x0bmc146818rtc\0\0\0\0\0\0\0\x03", &registers[..], &numbers, &next.to_be_bytes(), b".."].concat()
    }

    #[test]
    fn an_alarm_is_read_from_a_state() {
        assert_eq!(saved(&state(0x22, 0, 77)), Alarm::At(77));
        assert_eq!(saved(&state(0x02, 0, 77)), Alarm::Off, "it may not interrupt");
        assert_eq!(saved(&state(0x22, 0xa0, 77)), Alarm::At(0), "the guest has not seen it yet");
        assert_eq!(saved(b""), Alarm::Off);
        assert_eq!(saved(&[state(0x22, 0, 1), state(0x22, 0, 1)].concat()), Alarm::Off, "not understood");
    }

    #[test]
    fn what_has_fallen_due_is_not_forgotten() {
        let day = 86_400_000_000_000;
        assert_eq!(Alarm::At(5).or_later(Alarm::At(5 + day), 6), Alarm::At(5));
        assert_eq!(Alarm::At(5).or_later(Alarm::At(4), 3), Alarm::At(4), "the guest has set another");
        assert!(!Alarm::Off.is_due(i64::MAX) && Alarm::At(0).is_due(1) && !Alarm::At(2).is_due(1));
    }
}
