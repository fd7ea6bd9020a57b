//! What is read of a frozen volume is what it was, whatever the guest does meanwhile and however its writes get to the image.

use std::sync::{Arc, Mutex};

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_volume::nbd::Handler;
use ninefold_volume::sums::{BLOCK, blocks};
use ninefold_volume::{Frozen, Image, Served, VolumeError, WriteLog};
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
    served: Arc<Served>,
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
        let served = Served::new(image, WriteLog::in_memory().unwrap(), Acknowledge::Memory).unwrap();
        served.go_through();
        let mut vm = Vm { served: Arc::new(served), truth: vec![0x11; SIZE], held: false, epoch: 0 };
        before.iter().for_each(|step| vm.one(step));

        // The checkpoint at which it is frozen.
        let frozen = Frozen::new(Arc::clone(&vm.served), dir.path()).unwrap();
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
