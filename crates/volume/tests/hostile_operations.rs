//! Operations on a volume as a hostile peer, or file, writes them: each as small as can be, so that reading them takes much.

use counting::{Counting, most};
use ninefold_testkit::counting;
use ninefold_volume::batch::{BatchError, MAX_MEMORY, put_write, put_zero};
use ninefold_volume::overlay::Overlay;
use ninefold_volume::{Batch, Op};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SIZE: u64 = 1 << 40;

/// `count` operations that do not touch each other.
fn small(count: u64, put: fn(&mut Vec<u8>, u64)) -> Vec<u8> {
    let mut wire = Vec::new();
    (0..count).for_each(|n| put(&mut wire, n * 512));
    wire
}

/// What a batch is said to take is no less than what it does, with its place in the overlay: by that number everything that is
/// held is bounded.
#[test]
fn what_a_batch_takes_is_known() {
    for put in [|out: &mut Vec<u8>, at| put_write(out, at, &[1]), |out: &mut Vec<u8>, at| put_zero(out, at, 1, true)] {
        // Just over a power of two: the list has grown to twice of it.
        let wire = small((1 << 17) + 1, put);
        let (taken, (batch, _overlay)) = most(|| {
            let batch = Batch::parse(wire.clone(), SIZE).unwrap();
            let mut overlay = Overlay::default();
            batch.ops().iter().for_each(|op| overlay.put(op, 1));
            (batch, overlay)
        });
        let said = (batch.bytes() + wire.len()) as u64;
        assert!(taken <= said, "{taken} bytes, said to be {said}");
    }
}

/// 512 MiB of a checkpoint cannot become gigabytes: parsing ends when the room does.
#[test]
fn operations_end_where_their_room_does() {
    let room = 16 << 20;
    let wire = small(1 << 20, |out, at| put_zero(out, at, 1, true));
    let given = wire.clone();
    let (taken, batch) = most(move || Batch::parse_within(given, SIZE, room));
    assert_eq!(batch.unwrap_err(), BatchError::TooMany { room });
    assert!(taken < room as u64, "{taken} bytes");
    Batch::parse_within(wire, SIZE, MAX_MEMORY).unwrap();
}

/// One on no bytes does nothing and takes as much as any other.
#[test]
fn operations_on_nothing_are_refused() {
    let mut wire = Vec::new();
    put_write(&mut wire, 512, &[]);
    assert_eq!(Batch::parse(wire, SIZE).unwrap_err(), BatchError::Empty { at: 512 });
    let mut wire = Vec::new();
    put_zero(&mut wire, SIZE, 0, false);
    assert_eq!(Batch::parse(wire, SIZE).unwrap_err(), BatchError::Empty { at: SIZE });
    // None is ever written.
    let batch: Batch = [Op::Write { at: 0, data: Vec::new().into() }].into_iter().collect();
    batch.each_piece(&mut Vec::new(), |_| Err(())).unwrap();
}
