//! Keepers that die at each step of replicating a volume, by fault points. Whatever the step: nothing that was acknowledged
//! is lost, the next try works, and both hosts have the same.

mod support;

use ninefold_control::Request;
use ninefold_lab::programs::KEEPER;
use ninefold_model::event::EventKind;
use ninefold_model::spec::{Acknowledge, Protection, VolumeSpec};
use support::disks::name;
use support::{Action, Beginning, Scenario, wait_until};

fn begin(acknowledge: Acknowledge) -> Beginning {
    let mut begin = Beginning::default();
    begin.vm.volumes = vec![VolumeSpec::new(name("data"), 96 << 20)];
    begin.vm.acknowledge = [(name("data"), acknowledge)].into();
    begin
}

fn protected(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Protected { .. })
}

fn await_death(s: &Scenario, host: &str, step: &str) {
    let processes = s.lab.processes(host).unwrap();
    let alive = || processes.list().unwrap().iter().any(|p| p.program.starts_with(KEEPER));
    wait_until(&format!("end of the keeper on {host} at {step}"), || !alive());
}

/// The backup dies at a step; the primary goes on. The next keeper there finishes what the last began.
fn backups_die(name: &'static str, acknowledge: Acknowledge, steps: &[&str]) {
    let mut s = Scenario::with(name, begin(acknowledge));
    for step in steps {
        let mark = s.events.mark();
        s.lab.kill_keeper("b").unwrap();
        s.expect(mark, "a", "unprotected", |k| matches!(k, EventKind::Unprotected { .. }));
        // There is something to bring it up to date with.
        s.expect_writes(100);
        // It may be dead before it says that it is up.
        let _ = s.lab.start_keeper_with_faults("b", &format!("{step}=abort"));
        await_death(&s, "b", step);
        s.expect_writes(100);
        let mark = s.events.mark();
        s.lab.start_keeper("b").unwrap();
        s.expect(mark, "a", "protected", protected);
        s.images_become_equal_under_load("data", "any content", |_| true);
        eprintln!("  {step}: died, came back, equal");
    }
    // And it is as good a backup as any.
    s.run(&[Action::KillHost], 1);
    s.finish_with(|s| {
        s.lab.ask(&s.primary, &Request::Stop).unwrap();
        s.images_become_equal("data");
    });
}

#[test]
fn a_backup_dies_while_it_is_synced() {
    let steps = ["resync.answer", "resync.answer@5", "resync.apply", "receive.epoch", "receive.epoch@9"];
    backups_die("syncdies", Acknowledge::Memory, &steps);
}

#[test]
fn a_backup_dies_while_it_writes() {
    let steps = [
        "log.write@2",
        "log.sync@2",
        "log.synced@2",
        "recover.write",
        "apply.op@30",
        "apply.done@3",
        "image.flush",
        "log.clear",
        "log.cleared",
    ];
    backups_die("wrtdies", Acknowledge::Disk, &steps);
}

/// A primary that dies while it brings what is committed into its own image: the backup has the VM, and the former
/// primary finishes what it began and becomes the backup.
#[test]
fn a_primary_dies_while_it_writes() {
    // A thread that panics takes the others with it: without them its keeper would only look as if all were well.
    for step in ["log.sync@40=abort", "apply.done@400=abort", "log.clear@6=abort", "log.synced@40=panic"] {
        let mut s = Scenario::with("primdies", Beginning { faults: step.into(), ..begin(Acknowledge::Memory) });
        await_death(&s, "a", step);
        s.expect(0, "b", "took over", |k| matches!(k, EventKind::TookOver { .. }));
        s.swap_roles();
        s.expect_writes(100);
        let mark = s.events.mark();
        s.lab.start_keeper("a").unwrap();
        s.expect(mark, "b", "protected", protected);
        s.images_become_equal_under_load("data", "any content", |_| true);
        s.run(&[Action::KillQemu], 1);
        s.finish();
    }
}

/// A primary that dies in the middle of a first copy takes the VM with it: there is no backup yet. Its own disk has all
/// that a client was told of, and the VM boots again with it.
#[test]
#[ignore = "takes up to three minutes: a client learns of the loss when its TCP repeats, later and later"]
fn a_primary_dies_while_it_syncs() {
    for step in ["resync.ask", "resync.send", "resync.round"] {
        let mut begin = Beginning { faults: format!("{step}=abort"), ..begin(Acknowledge::Memory) };
        begin.vm.protection = Protection::None;
        let mut s = Scenario::with("copydies", begin);
        s.expect_writes(200);
        s.lab.ask("a", &Request::Protect).unwrap();
        await_death(&s, "a", step);
        s.lab.start_keeper("a").unwrap();
        s.lab.ask("a", &Request::Start { force: false }).unwrap();
        s.await_guest();
        // The client's old connection is refused by the new guest, which takes as long as its next repetition.
        support::wait_until("the end of the client's connection", || s.ledger().resets() == 1);
        let report = s.ledger.take().unwrap().finish().unwrap();
        assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 1), "{step}: {report:?}");
        // This time it gets to the end.
        s.open_ledger();
        let mark = s.events.mark();
        s.lab.ask("a", &Request::Protect).unwrap();
        s.expect(mark, "a", "protected", protected);
        s.images_become_equal_under_load("data", "any content", |_| true);
        s.run(&[Action::KillQemu], 1);
        s.finish();
    }
}
