//! A VM is what it was booted with, wherever it goes, whatever its hosts' files say by now.

mod support;

use ninefold_control::Request;
use ninefold_lab::Lab;
use ninefold_model::event::EventKind;
use ninefold_model::spec::Protection;
use ninefold_model::status::Role;
use support::{Action, Beginning, Scenario};

/// Changes the file of a host's keeper.
fn rewrite(lab: &Lab, host: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let path = lab.run_dir(host).join("keeper.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// The file of b says that the VM has another processor and more memory. b follows what runs, says so before anything is copied, and the
/// VM survives whichever host it is on.
#[test]
fn a_vm_goes_on_as_it_was_booted_where_the_file_says_otherwise() {
    let prepare = |lab: &Lab| {
        rewrite(lab, "b", |config| {
            config["hardware"]["vcpus"] = 2.into();
            config["hardware"]["memory_mib"] = 512.into();
        });
    };
    let mut s = Scenario::with("booted", Beginning { prepare: Some(Box::new(prepare)), ..Default::default() });
    let (vcpus, memory) = (s.options.vcpus, s.options.memory_mib);
    assert!(vcpus == 1 && memory < 512, "{vcpus} {memory}");

    let events = s.events.all();
    let at = |wanted: &dyn Fn(&EventKind) -> bool| events.iter().position(|e| wanted(&e.kind)).unwrap();
    let said = at(&|k| matches!(k, EventKind::ConfiguredOtherwise { .. }));
    assert!(said < at(&|k| matches!(k, EventKind::Protected { .. })), "it is said before the first copy has ended");
    let EventKind::ConfiguredOtherwise { at, differences } = &events[said].kind else { unreachable!() };
    assert_eq!((events[said].host.as_str(), at.as_str()), ("a", "b"));
    for wanted in [
        format!("hardware.vcpus: a runs {vcpus}, b's file says 2"),
        format!("hardware.memory_mib: a runs {memory}, b's file says 512"),
        "from the next boot on b on".to_owned(),
    ] {
        assert!(differences.iter().any(|d| d.contains(&wanted)), "{wanted}: {differences:?}");
    }
    let fields = |s: &Scenario, host: &str| {
        let status = s.lab.keeper(host).unwrap().status().unwrap();
        (status.role, status.differs.into_iter().map(|d| (d.field, d.runs, d.file)).collect::<Vec<_>>())
    };
    let differ = vec![
        ("hardware.vcpus".to_owned(), vcpus.to_string(), "2".to_owned()),
        ("hardware.memory_mib".to_owned(), memory.to_string(), "512".to_owned()),
    ];
    assert_eq!(fields(&s, "b"), (Role::Backup, differ.clone()));
    assert_eq!(fields(&s, "a"), (Role::Primary, Vec::new()));

    s.act(Action::Switchover);
    // It runs on b as it was booted on a, and a is offered what runs.
    assert_eq!(fields(&s, "b"), (Role::Primary, differ));
    assert_eq!(fields(&s, "a"), (Role::Backup, Vec::new()));
    s.act(Action::KillHost);
    assert_eq!(fields(&s, "a").0, Role::Primary);
    // And back, to a keeper of b that was started anew from its file.
    s.act(Action::KillQemu);
    assert_eq!(fields(&s, "b").0, Role::Primary);
    s.finish();
}

/// The QEMU of b builds another machine than it is asked for, which no description shows. That it could not go on with the VM is found out
/// before the VM is called protected, and not when its primary is gone.
#[test]
fn a_host_that_could_not_load_the_vm_is_no_backup() {
    let prepare = |lab: &Lab| {
        let qemu = lab.run_dir("b").join("qemu-with-two-processors");
        rewrite(lab, "b", |config| {
            let real = config["host"]["qemu"].as_str().unwrap_or("qemu-system-x86_64").to_owned();
            let swap = r#"for arg do shift; [ "$prev" = -smp ] && arg=2; set -- "$@" "$arg"; prev=$arg; done"#;
            std::fs::write(&qemu, format!("#!/bin/sh\n{swap}\nexec {real} \"$@\"\n")).unwrap();
            std::fs::set_permissions(&qemu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            config["host"]["qemu"] = qemu.to_str().unwrap().into();
        });
    };
    let mut begin = Beginning { prepare: Some(Box::new(prepare)), ..Default::default() };
    begin.vm.protection = Protection::None;
    let s = Scenario::with("unloadable", begin);
    s.lab.ask("a", &Request::Protect).unwrap();
    let lost = s.expect(0, "a", "end of the session", |k| matches!(k, EventKind::BackupLost { .. }));
    let EventKind::BackupLost { reason, .. } = lost.kind else { unreachable!() };
    assert!(reason.contains("the VM could not go on here, its devices cannot be loaded"), "{reason}");
    assert!(!s.events.all().iter().any(|e| matches!(e.kind, EventKind::Protected { .. })));
    let mark = s.events.mark();
    s.lab.kill_keeper("b").unwrap();
    rewrite(&s.lab, "b", |config| drop(config["host"].as_object_mut().unwrap().remove("qemu")));
    s.lab.start_keeper("b").unwrap();
    s.expect(mark, "a", "protection", |k| matches!(k, EventKind::Protected { .. }));
    s.expect_writes(100);
    s.finish();
}
