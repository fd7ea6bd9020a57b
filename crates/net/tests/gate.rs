//! The gate against a reference model that is too simple to be wrong.

use std::time::{Duration, Instant};

use ninefold_model::Epoch;
use ninefold_net::Urgency;
use ninefold_net::gate::{Counts, Gate, Limits, Mode, Push};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Push(usize),
    Close,
    Release { back: u64 },
    PopSome { items: usize, bytes: usize },
    AllowThenMute { back: u64 },
    Discard,
    Mode(Mode),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..40usize).prop_map(Op::Push),
        4 => Just(Op::Close),
        4 => (0..4u64).prop_map(|back| Op::Release { back }),
        2 => ((0..6usize), (0..80usize)).prop_map(|(items, bytes)| Op::PopSome { items, bytes }),
        1 => (0..4u64).prop_map(|back| Op::AllowThenMute { back }),
        1 => Just(Op::Discard),
        2 => prop::sample::select(vec![Mode::Open, Mode::Held, Mode::Held, Mode::Mute]).prop_map(Op::Mode),
    ]
}

/// An item of the model: what it is, and the epoch after whose release it may leave (`Epoch(0)`: at once).
type Item = (Vec<u8>, Option<Epoch>);

const LIMITS: Limits = Limits { bytes: 200, items: 12 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn behaves_as_the_model(ops in prop::collection::vec(op(), 1..200)) {
        let base = Instant::now();
        let mut gate = Gate::new(Mode::Held, LIMITS);
        let mut mode = Mode::Held;
        let mut items: Vec<Item> = Vec::new();
        let mut epoch = Epoch(0);
        let mut counts = Counts::default();
        let (mut waiting, mut urgent) = (None, None);
        let allow = |items: &mut Vec<Item>, up_to: Epoch| {
            for (_, at) in items.iter_mut() {
                if at.is_some_and(|e| e <= up_to) {
                    *at = Some(Epoch(0));
                }
            }
        };
        for (n, op) in ops.into_iter().enumerate() {
            let now = base + Duration::from_millis(n as u64);
            match op {
                Op::Push(len) => {
                    // Every item is different from those near it, so that mix-ups show.
                    let item: Vec<u8> = (0..len).map(|i| (n * 7 + i) as u8).collect();
                    let room = gate.room();
                    let urgency = if n % 3 == 0 { Urgency::Urgent } else { Urgency::Patient };
                    let push = gate.push(&item, urgency, now);
                    counts.pushed += u64::from(len > 0);
                    let held: usize = items.iter().map(|(i, _)| i.len()).sum();
                    match push {
                        Push::Empty => prop_assert_eq!(len, 0),
                        Push::Mute => {
                            prop_assert_eq!(mode, Mode::Mute);
                            counts.dropped_mute += 1;
                        }
                        Push::Full => {
                            // Only for want of room: an item lies in one piece, so up to an item's length is lost at
                            // the ring's end, and what is free may be in two pieces.
                            prop_assert!(mode != Mode::Mute && len > room);
                            let free = LIMITS.bytes - held;
                            prop_assert!(items.len() == LIMITS.items || free < 2 * len + 40);
                            counts.dropped_full += 1;
                        }
                        Push::Passed => {
                            prop_assert_eq!(mode, Mode::Open);
                            items.push((item, Some(Epoch(0))));
                        }
                        Push::Held { first } => {
                            prop_assert_eq!(mode, Mode::Held);
                            let first_urgent = urgency == Urgency::Urgent && urgent.is_none();
                            prop_assert_eq!(first, waiting.is_none() || first_urgent);
                            waiting.get_or_insert(now);
                            if first_urgent {
                                urgent = Some(now);
                            }
                            items.push((item, None));
                        }
                    }
                }
                Op::Close => {
                    epoch = epoch.next();
                    gate.close_epoch(epoch);
                    items.iter_mut().for_each(|(_, at)| { at.get_or_insert(epoch); });
                    (waiting, urgent) = (None, None);
                    let mut said = Vec::new();
                    gate.each_in(epoch, |i| said.push(i.to_vec()));
                    let want: Vec<_> =
                        items.iter().filter(|(_, at)| *at == Some(epoch)).map(|(i, _)| i.clone()).collect();
                    prop_assert_eq!(said, want);
                }
                Op::Release { back } => {
                    let up_to = Epoch(epoch.0.saturating_sub(back));
                    allow(&mut items, up_to);
                    let n = items.iter().take_while(|(_, at)| *at == Some(Epoch(0))).count();
                    let want: Vec<_> = items.drain(..n).map(|(i, _)| i).collect();
                    counts.left += n as u64;
                    let mut left = Vec::new();
                    prop_assert_eq!(gate.release_up_to(up_to, |i| left.push(i.to_vec())), n);
                    prop_assert_eq!(left, want);
                }
                Op::PopSome { items: most, bytes } => {
                    let mut want = Vec::new();
                    let mut sum = 0;
                    while want.len() < most && items.first().is_some_and(|(_, at)| *at == Some(Epoch(0))) {
                        sum += items[0].0.len();
                        if !want.is_empty() && sum > bytes {
                            break;
                        }
                        want.push(items.remove(0).0);
                    }
                    counts.left += want.len() as u64;
                    let mut left = Vec::new();
                    gate.pop_allowed(most, bytes, |i| left.push(i.to_vec()));
                    prop_assert_eq!(left, want);
                }
                Op::AllowThenMute { back } => {
                    let up_to = Epoch(epoch.0.saturating_sub(back));
                    gate.allow(up_to);
                    allow(&mut items, up_to);
                    let n = items.iter().take_while(|(_, at)| *at == Some(Epoch(0))).count();
                    items.drain(..n);
                    counts.stale += n as u64;
                    counts.dropped_mute += items.len() as u64;
                    items.clear();
                    (waiting, urgent) = (None, None);
                    gate.set_mode(Mode::Mute);
                    mode = Mode::Mute;
                }
                Op::Discard => {
                    let n = items.iter().filter(|(_, at)| *at == Some(Epoch(0))).count();
                    counts.stale += n as u64;
                    counts.dropped_mute += (items.len() - n) as u64;
                    prop_assert_eq!(gate.discard(), items.len());
                    items.clear();
                    (waiting, urgent) = (None, None);
                }
                Op::Mode(to) => {
                    gate.set_mode(to);
                    mode = to;
                    if to == Mode::Open {
                        items.iter_mut().for_each(|(_, at)| *at = Some(Epoch(0)));
                        (waiting, urgent) = (None, None);
                    } else if to == Mode::Mute {
                        let n = items.iter().filter(|(_, at)| *at == Some(Epoch(0))).count();
                        counts.stale += n as u64;
                        counts.dropped_mute += (items.len() - n) as u64;
                        items.clear();
                        (waiting, urgent) = (None, None);
                    }
                }
            }
            let bytes: usize = items.iter().map(|(i, _)| i.len()).sum();
            prop_assert_eq!(gate.len(), items.len());
            prop_assert_eq!(gate.bytes(), bytes);
            prop_assert_eq!(gate.mode(), mode);
            prop_assert_eq!((gate.waiting(), gate.urgent()), (waiting, urgent));
            prop_assert_eq!(gate.counts(), counts);
            prop_assert!(bytes <= LIMITS.bytes && items.len() <= LIMITS.items);
            prop_assert_eq!(
                gate.wants_checkpoint(),
                bytes * 2 >= LIMITS.bytes || items.len() * 2 >= LIMITS.items
            );
            let dropped = counts.left + counts.stale + counts.dropped_full + counts.dropped_mute;
            prop_assert_eq!(counts.pushed, dropped + items.len() as u64);
        }
    }
}

#[test]
fn many_closed_epochs_never_leave_early() {
    let mut gate = Gate::new(Mode::Held, Limits::default());
    for n in 1..=1000u64 {
        let _ = gate.push(&n.to_be_bytes(), Urgency::Urgent, Instant::now());
        gate.close_epoch(Epoch(n));
    }
    for n in 1..=1000u64 {
        gate.release_up_to(Epoch(n), |item| {
            assert!(u64::from_be_bytes(item.try_into().unwrap()) <= n);
        });
    }
    assert!(gate.is_empty());
}

#[test]
fn the_whole_ring_can_be_used() {
    let mut gate = Gate::new(Mode::Held, Limits { bytes: 100, items: 100 });
    let now = Instant::now();
    for _ in 0..10 {
        assert!(matches!(gate.push(&[1; 10], Urgency::Urgent, now), Push::Held { .. }));
    }
    assert_eq!(gate.room(), 0);
    assert_eq!(gate.push(&[1], Urgency::Urgent, now), Push::Full);
    gate.close_epoch(Epoch(1));
    assert_eq!(gate.release_up_to(Epoch(1), |_| ()), 10);
    assert_eq!(gate.room(), 100);
}
