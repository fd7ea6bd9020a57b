//! The fault matrix, what the guest does itself: it restarts, it switches itself off. Neither is a failure of its host.

mod support;

use ninefold_control::Request;
use ninefold_lab::programs::QEMU;
use ninefold_model::event::EventKind;
use ninefold_model::spec::{EpochPolicy, NonVolatile, Protection, VolumeSpec};
use ninefold_model::status::Role;
use support::{Action, Beginning, Scenario, rounds, wait_until};

/// Ends the ledger before the guest forgets everything on purpose: until now, nothing was lost.
fn close_ledger(s: &mut Scenario) {
    let report = s.ledger.take().unwrap().finish().unwrap();
    assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 0), "{report:?}");
}

#[test]
fn a_guest_restarts() {
    let mut s = Scenario::start("reset");
    for round in 0..rounds(2) {
        close_ledger(&mut s);
        let mark = s.events.mark();
        let before = s.observer.report().frames(&s.primary);
        let _console = match round % 2 {
            0 => s.lab.ask(&s.primary, &Request::Reset).map(|()| None).unwrap(),
            _ => Some(s.type_line("reboot -f")),
        };
        // It has forgotten its clients; that it has really restarted shows in that its redis is empty.
        s.await_restart();
        s.open_ledger();
        s.expect_writes(100);
        assert!(s.observer.report().frames(&s.primary) > before);
        let since = &s.events.all()[mark..];
        assert!(!since.iter().any(|e| matches!(e.kind, EventKind::TookOver { .. })), "{since:?}");
        // And it is as protected as before.
        s.run(&[Action::KillQemu, Action::KillHost], 1);
    }
    s.finish();
}

/// The VM ends everywhere: its backup does not raise it from the dead.
#[test]
fn a_guest_switches_itself_off() {
    for how in ["poweroff -f", "stop"] {
        let mut s = Scenario::start("poweroff");
        close_ledger(&mut s);
        let mark = s.events.mark();
        let _console = match how {
            "stop" => s.lab.ask(&s.primary, &Request::Stop).map(|()| None).unwrap(),
            line => Some(s.type_line(line)),
        };
        s.expect(mark, "a", "stopped", |k| matches!(k, EventKind::Stopped { .. }));
        let keepers = ["a", "b"].map(|h| s.lab.keeper(h).unwrap());
        wait_until("end of the VM on both hosts", || keepers.iter().all(|k| k.status().unwrap().role == Role::Standby));
        wait_until("end of both QEMUs", || {
            ["a", "b"].iter().all(|h| {
                let all = s.lab.processes(h).unwrap().list().unwrap();
                !all.iter().any(|p| p.program.starts_with(QEMU))
            })
        });
        let since = &s.events.all()[mark..];
        let raised = |k: &EventKind| matches!(k, EventKind::TookOver { .. } | EventKind::Lost { .. });
        assert!(!since.iter().any(|e| raised(&e.kind)), "{how}: {since:?}");
        // It can be started again, and is protected again.
        s.lab.ask("a", &Request::Start { force: false }).unwrap();
        s.await_guest();
        s.open_ledger();
        s.settle(mark);
        s.finish();
    }
}

/// What a guest writes in its last moment is on its disks: on both hosts', if the VM was protected, and whatever becomes
/// of the backup meanwhile.
#[test]
fn the_last_words_of_a_guest_are_on_its_disks() {
    let logged = |hold_output| Some(NonVolatile { hold_output, interval_ms: 2000 });
    for (protection, lose_backup, non_volatile) in [
        (Protection::FaultTolerant, false, None),
        (Protection::FaultTolerant, true, None),
        (Protection::None, false, None),
        (Protection::None, false, logged(true)),
        (Protection::None, false, logged(false)),
        (Protection::FaultTolerant, false, logged(false)),
    ] {
        let mut begin = Beginning::default();
        begin.vm.non_volatile = non_volatile;
        begin.vm.volumes = vec![VolumeSpec::new(support::disks::name("data"), 96 << 20)];
        begin.vm.protection = protection;
        let mut s = Scenario::with("lastword", begin);
        close_ledger(&mut s);
        let mark = s.events.mark();
        // So long that the write and the end are in the same epoch, the one that nobody has asked for.
        s.lab.ask("a", &Request::SetEpochs { policy: EpochPolicy::Fixed { ms: 2000 } }).unwrap();
        if non_volatile.is_some() {
            s.expect(0, "a", "non-volatile", |k| matches!(k, EventKind::NonVolatile { .. }));
        }
        let _console = s.type_line("printf last-%s words >/data/last; sync; poweroff -f");
        if lose_backup {
            s.lab.kill_keeper("b").unwrap();
        }
        s.expect(mark, "a", "stopped", |k| matches!(k, EventKind::Stopped { .. }));
        let since = &s.events.all()[mark..];
        let raised = |k: &EventKind| matches!(k, EventKind::TookOver { .. } | EventKind::Lost { .. });
        assert!(!since.iter().any(|e| raised(&e.kind)), "{since:?}");
        let spoken = |image: &[u8]| image.windows(10).any(|w| w == b"last-words");
        if protection == Protection::FaultTolerant && !lose_backup {
            s.images_become_equal_with("data", "the last words", spoken);
        } else {
            // In the image by the time that the VM has stopped, or on its way there.
            wait_until("the last words", || spoken(&s.image("a", "data")));
        }
    }
}
