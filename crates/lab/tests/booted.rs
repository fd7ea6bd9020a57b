//! A VM is what it was booted with, wherever it goes, whatever its hosts' files say by now.

mod support;

use ninefold_model::event::EventKind;
use ninefold_model::status::Role;
use support::{Action, Beginning, Scenario};

/// The file of b says that the VM has another processor and more memory. b follows what runs, says so before anything is copied, and the
/// VM survives whichever host it is on.
#[test]
fn a_vm_goes_on_as_it_was_booted_where_the_file_says_otherwise() {
    let prepare = |lab: &ninefold_lab::Lab| {
        let path = lab.run_dir("b").join("keeper.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["vm"]["vcpus"] = 2.into();
        config["vm"]["memory_mib"] = 512.into();
        std::fs::write(path, config.to_string()).unwrap();
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
        format!("vcpus: a runs {vcpus}, b's file says 2"),
        format!("memory_mib: a runs {memory}, b's file says 512"),
        "from the next boot on b on".to_owned(),
    ] {
        assert!(differences.iter().any(|d| d.contains(&wanted)), "{wanted}: {differences:?}");
    }
    let fields = |s: &Scenario, host: &str| {
        let status = s.lab.keeper(host).unwrap().status().unwrap();
        (status.role, status.differs.into_iter().map(|d| (d.field, d.runs, d.file)).collect::<Vec<_>>())
    };
    let differ = vec![
        ("vcpus".to_owned(), vcpus.to_string(), "2".to_owned()),
        ("memory_mib".to_owned(), memory.to_string(), "512".to_owned()),
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
