//! The witness as a process of its host. Needs root and the programs built (`cargo build --workspace`), which Cargo
//! does not do for this crate's tests alone.

mod fixture;

use fixture::{lab, traces};
use ninefold_lab::LabError;

#[test]
#[ignore = "needs ninefold-witness built"]
fn the_witness_starts_ends_and_starts_again() {
    let lab = lab("witness");
    let name = lab.name().to_owned();
    let runs = || lab.processes("w").unwrap().list().unwrap().len();
    lab.start_witness().unwrap();
    assert_eq!(runs(), 1);
    lab.kill_witness().unwrap();
    assert_eq!(runs(), 0);
    lab.start_witness().unwrap();
    lab.stop_witness().unwrap();
    assert_eq!(runs(), 0);
    lab.start_witness().unwrap();
    assert!(matches!(lab.start_keeper("w"), Err(LabError::Host { .. })), "the witness's host runs no VMs");
    lab.kill_host("w").unwrap();
    assert_eq!(runs(), 0);
    lab.restart_host("w").unwrap();
    lab.start_witness().unwrap();
    lab.down().unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
}
