//! VMs that are no more: what the witness says of them, and what it keeps.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use ninefold_model::{Backup, HostName, Record, Term, Tombstone, VmId};
use ninefold_witness::Limits;
use ninefold_witness::registers::FILE;
use ninefold_witness::tombstones::MAX_TOMBSTONES;
use ninefold_witness_client::{Retirement, Swap, Witness, WitnessClient, WitnessError};
use support::{Place, any_port, host, label, vm};

fn boot(client: &mut WitnessClient, id: VmId, on: &HostName) -> Record {
    let boot = Record::boot(on.clone());
    assert_eq!(client.compare_and_swap(id, &label(), None, &boot).unwrap(), Swap::Won(boot.clone()));
    boot
}

fn is_retired<T: std::fmt::Debug>(answer: Result<T, WitnessError>, grave: Tombstone) {
    assert!(matches!(&answer, Err(WitnessError::Retired { tombstone, .. }) if *tombstone == grave), "{answer:?}");
}

/// Whatever comes after it, and whoever asks, also of a witness that was started anew.
#[test]
fn a_vm_that_is_retired_has_no_record_and_gets_none() {
    let place = Place::new();
    let mut server = place.serve(any_port(), Limits::default());
    let (mut a, mut b) = (place.client("a", server.addr), place.client("b", server.addr));
    let first = boot(&mut a, vm("db"), &host("a"));
    let bound = first.bound(vec![Backup { host: host("b"), session: Term(1) }]);
    a.compare_and_swap(vm("db"), &label(), Some(&first), &bound).unwrap();
    // Not by who knows an old record, nor by another host of its own accord.
    assert_eq!(b.retire(vm("db"), &first, true).unwrap(), Retirement::Lost(Some(bound.clone())));
    let refused = b.retire(vm("db"), &bound, false);
    assert!(matches!(&refused, Err(WitnessError::Refused(why)) if why.contains("only a may retire it")), "{refused:?}");
    assert_eq!(a.read(vm("db")).unwrap(), Some(bound.clone()));
    assert_eq!(a.retire(vm("other"), &bound, false).unwrap(), Retirement::Lost(None));

    let Retirement::Done(grave) = a.retire(vm("db"), &bound, false).unwrap() else { panic!("it is still there") };
    assert_eq!(grave.term, Term(3));
    for _ in 0..2 {
        assert_eq!(a.retire(vm("db"), &bound, false).unwrap(), Retirement::Done(grave), "no answer had come");
        is_retired(b.read(vm("db")), grave);
        is_retired(b.compare_and_swap(vm("db"), &label(), Some(&bound), &bound.alone(host("b"))), grave);
        // Neither as if it had never been there.
        is_retired(a.compare_and_swap(vm("db"), &label(), None, &first), grave);
        assert!(a.list().unwrap().is_empty());
        drop(server);
        server = place.serve(any_port(), Limits::default());
        (a, b) = (place.client("a", server.addr), place.client("b", server.addr));
    }
    // Another VM of this name is another VM.
    let second = boot(&mut b, vm("db, the second"), &host("b"));
    assert_eq!(b.list().unwrap()[0].name, label().name);
    // Its host is gone, and an operator says on another that it is no more.
    assert!(matches!(a.retire(vm("db, the second"), &second, true), Ok(Retirement::Done(_))));
    assert!(matches!(b.read(vm("db, the second")), Err(WitnessError::Retired { .. })));
}

/// The witness's file and memory, bytes.
fn taken(place: &Place, pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")).unwrap();
    let file = std::fs::metadata(place.data().join(FILE)).unwrap().len();
    (file, memory.parse::<u64>().unwrap() << 10)
}

/// A witness that is used for ever keeps what lives and so many tombstones, however many VMs there have been.
#[test]
fn ten_thousand_vms_that_come_and_go_leave_no_more_than_five_thousand() {
    let place = Place::new();
    let process = place.spawn(any_port());
    let next = AtomicU64::new(0);
    let id = |n: u64| VmId::random(u128::from(n) << 80);
    let mut clients: Vec<_> = (0..24).map(|_| place.client("a", process.addr)).collect();
    let sizes = [5_000, 7_500, 10_000].map(|size: u64| {
        std::thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(|| {
                    while let Ok(n) =
                        next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < size).then_some(n + 1))
                    {
                        let first = boot(client, id(n), &host("a"));
                        let last = first.alone(host("a"));
                        client.compare_and_swap(id(n), &label(), Some(&first), &last).unwrap();
                        let done = client.retire(id(n), &last, false).unwrap();
                        assert!(matches!(done, Retirement::Done(_)), "{done:?}");
                    }
                });
            }
        });
        let (file, memory) = taken(&place, process.child.id());
        println!("{size} VMs: file {} KiB, memory {} KiB", file >> 10, memory >> 10);
        (file, memory)
    });
    let [(file, memory), .., (file_after, memory_after)] = sizes;
    assert!(file_after <= file + (64 << 10) && file_after < 8 << 20, "{sizes:?}");
    assert!(memory_after <= memory + (4 << 20), "{sizes:?}");
    // The oldest are forgotten, the newest are not.
    let client = &mut clients[0];
    assert_eq!(client.read(id(0)).unwrap(), None);
    assert!(matches!(client.read(id(9_999)), Err(WitnessError::Retired { .. })));
    let known = (0..10_000).filter(|&n| client.read(id(n)).is_err()).count();
    assert_eq!(known, MAX_TOMBSTONES);
    assert!(client.list().unwrap().is_empty());
}
