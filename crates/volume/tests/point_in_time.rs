//! What is read of a frozen volume is what it was, whatever the guest does meanwhile and however its writes get to the image.

use std::sync::{Arc, Mutex};

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_volume::checksums::{BLOCK, blocks};
use ninefold_volume::nbd::Handler;
use ninefold_volume::{Image, PointInTime, ServedVolume, VolumeError, WriteLog};
use proptest::prelude::*;

/// The last block is short.
const SIZE: usize = 3 * BLOCK as usize + 512;

#[derive(Debug)]
struct Disk(Mutex<Vec<u8>>);

impl Image for Disk {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        into.copy_from_slice(&self.0.lock().unwrap()[at as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        self.0.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&self, at: u64, length: u64, _: bool) -> Result<(), VolumeError> {
        self.0.lock().unwrap()[at as usize..][..length as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        at: usize,
        length: usize,
        byte: u8,
    },
    Zero {
        at: usize,
        length: usize,
    },
    /// A checkpoint of a protected VM; nothing if it is not.
    Seal,
    Commit,
    Protect,
    Alone,
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE, 1..90_000usize).prop_map(|(at, length)| (at, length.min(SIZE - at)));
    prop_oneof![
        6 => (range(), any::<u8>()).prop_map(|((at, length), byte)| Step::Write { at, length, byte }),
        2 => range().prop_map(|(at, length)| Step::Zero { at, length }),
        3 => Just(Step::Seal),
        2 => Just(Step::Commit),
        1 => Just(Step::Protect),
        1 => Just(Step::Alone),
        3 => Just(Step::Read),
    ]
}

struct Vm {
    served: Arc<ServedVolume>,
    truth: Vec<u8>,
    held: bool,
    epoch: u64,
}

impl Vm {
    fn one(&mut self, step: &Step) {
        match *step {
            Step::Write { at, length, byte } => {
                self.truth[at..at + length].fill(byte);
                Handler::write(&*self.served, at as u64, vec![byte; length], false).unwrap();
            }
            Step::Zero { at, length } => {
                self.truth[at..at + length].fill(0);
                Handler::zero(&*self.served, at as u64, length as u64, false, false).unwrap();
            }
            Step::Seal if self.held => {
                self.epoch += 1;
                self.served.seal(Epoch(self.epoch));
            }
            Step::Commit => self.served.commit(Epoch(self.epoch.saturating_sub(1))),
            Step::Protect => {
                self.served.hold();
                self.held = true;
            }
            Step::Alone => {
                self.served.go_through();
                self.held = false;
            }
            Step::Seal | Step::Read => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_frozen_volume_is_what_it_was(
        before in prop::collection::vec(step(), 0..15),
        after in prop::collection::vec(step(), 0..25),
        order in any::<u64>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let image = Box::new(Disk(Mutex::new(vec![0x11; SIZE])));
        let served = ServedVolume::new(image, WriteLog::in_memory().unwrap(), Acknowledge::Memory).unwrap();
        served.go_through();
        let mut vm = Vm { served: Arc::new(served), truth: vec![0x11; SIZE], held: false, epoch: 0 };
        before.iter().for_each(|step| vm.one(step));

        // The checkpoint at which it is frozen.
        let frozen = PointInTime::new(Arc::clone(&vm.served), dir.path()).unwrap();
        vm.epoch += 1;
        vm.served.seal(Epoch(vm.epoch));
        frozen.freeze(&vm.served.queued());
        if !vm.held {
            vm.served.go_through();
        }
        let truth = vm.truth.clone();
        let mut left: Vec<u64> = (0..blocks(SIZE as u64)).collect();
        let mut found = Vec::new();
        for (n, step) in (0u32..).zip(&after) {
            vm.one(step);
            if matches!(step, Step::Read) && !left.is_empty() {
                let block = left.remove(order.rotate_left(n) as usize % left.len());
                let mut content = Vec::new();
                frozen.block(block, &mut content).unwrap();
                found.push((block, content));
            }
        }
        for block in left {
            let mut content = Vec::new();
            frozen.block(block, &mut content).unwrap();
            found.push((block, content));
        }
        for (block, content) in found {
            let at = (block * BLOCK) as usize;
            prop_assert!(content == truth[at..(at + BLOCK as usize).min(SIZE)], "block {}", block);
        }
        // And the guest has what it wrote.
        let mut all = vec![0; SIZE];
        vm.served.read(0, &mut all).unwrap();
        prop_assert!(all == vm.truth);
    }
}

/// An empty image that notes how much is made zero at once, and how much was read in between.
#[derive(Debug, Default, Clone)]
struct Empty(Arc<Mutex<Vec<u64>>>);

impl Image for Empty {
    fn size(&self) -> u64 {
        1 << 28
    }

    fn read(&self, _: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        into.fill(0);
        self.0.lock().unwrap().push(into.len() as u64);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), VolumeError> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: bool) -> Result<(), VolumeError> {
        // What was read before it.
        self.0.lock().unwrap().clear();
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}

/// What a discard takes away is saved piece by piece, however long it is: in between the disk is seen to get on, and others have
/// their turn.
#[test]
fn a_long_discard_is_saved_piece_by_piece() {
    const PIECE: u64 = 16 << 20;
    let image = Empty::default();
    let dir = tempfile::tempdir().unwrap();
    let log = WriteLog::in_memory().unwrap();
    let served = Arc::new(ServedVolume::new(Box::new(image.clone()), log, Acknowledge::Memory).unwrap());
    served.go_through();
    served.hold();
    let frozen = PointInTime::new(Arc::clone(&served), dir.path()).unwrap();
    frozen.freeze(&[]);
    // One that looks when a piece has been saved, before it goes.
    #[derive(Debug)]
    struct Longest(Empty, Mutex<u64>);
    impl ninefold_volume::served::Mark for Longest {
        fn before(&self, _: u64, _: u64) {
            let read = self.0.0.lock().unwrap().iter().sum::<u64>();
            let mut longest = self.1.lock().unwrap();
            *longest = read.max(*longest);
        }
    }
    let longest = Arc::new(Longest(image.clone(), Mutex::new(0)));
    served.add_mark(Arc::clone(&longest) as Arc<dyn ninefold_volume::served::Mark>);
    Handler::zero(&*served, 0, image.size(), true, false).unwrap();
    served.seal(Epoch(1));
    served.commit(Epoch(1));
    served.settle(std::time::Duration::from_secs(60)).unwrap();
    assert_eq!(*longest.1.lock().unwrap(), PIECE);
    // It was empty: nothing had to be written for that.
    let mut block = Vec::new();
    frozen.block(0, &mut block).unwrap();
    assert!(block.iter().all(|byte| *byte == 0));
}
