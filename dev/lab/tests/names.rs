//! A VM is its id. It is renamed while it runs, retired when it has stopped, and leaves its name to another VM, which inherits nothing.
//!
//! The guest is a boot sector that needs nothing. Real hosts, keepers and QEMUs; needs root.

mod support;

use std::fs;
use std::path::PathBuf;

use ninefold_control::{ClientError, FreezeChoice, Refusal, Request};
use ninefold_lab::{EventWatch, Lab, LabConfig, VmOptions};
use ninefold_model::event::{Event, EventKind, Position};
use ninefold_model::spec::{Boot, NonVolatile};
use ninefold_model::status::Role;
use ninefold_model::{Term, Uuid, VmId, VmName};
use ninefold_testkit::{programs, watched};
use support::{deadline, lab_name, wait_until};
use watched::Behaviour;

const HOSTS: [&str; 2] = ["a", "b"];

fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

/// A non-volatile VM of this name, with an id of its own.
fn vm(lab: &Lab, called: &str) -> VmOptions {
    let mut options = VmOptions::new(name(called));
    options.memory_mib = 32;
    // A machine that is busy with builds shall not look like one that has died.
    options.timing.failure_timeout_ms = 500;
    options.non_volatile = Some(NonVolatile::default());
    options.boot = Some(Boot::BootSector { image: watched::image(&lab.dir(), Behaviour::Works) });
    options
}

fn start_keepers(lab: &Lab, options: &VmOptions) {
    lab.configure_vm(options).unwrap();
    for host in HOSTS {
        lab.start_keeper(host).unwrap();
    }
}

fn expect(lab: &Lab, events: &EventWatch, mark: usize, what: &str, wanted: impl Fn(&Event) -> bool) {
    if events.wait_for(mark, deadline(), wanted).is_none() {
        panic!("no {what}: {:#?}\n{}", events.all(), lab.logs_for_error());
    }
}

/// The refusal of what this host's keeper is asked to carry out.
fn refused(lab: &Lab, host: &str, request: &Request) -> Refusal {
    match lab.keeper(host).unwrap().carry_out(request) {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("{request:?} on {host}: {other:?}"),
    }
}

/// To whose directory the name leads on a host.
fn led_to(lab: &Lab, host: &str, called: &str) -> Option<String> {
    let link = fs::read_link(lab.run_dir(host).join("by-name").join(called)).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// Which life of the VM runs on host a.
fn generation(lab: &Lab) -> Option<Uuid> {
    lab.keeper("a").unwrap().status().unwrap().machine.expect("it runs").generation
}

/// What a host has on its disk by this id.
fn left(lab: &Lab, host: &str, id: VmId) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![lab.pool_dir(host)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.file_name().unwrap().to_string_lossy().contains(&id.to_string()) {
                true => found.push(path),
                false if path.is_dir() => folders.push(path),
                false => {}
            }
        }
    }
    found
}

#[test]
fn a_vm_leaves_its_name_to_another_that_inherits_nothing() {
    programs::build(programs::OF_A_LAB);
    let lab = Lab::up(&LabConfig::new(&lab_name()).unwrap()).unwrap();
    let first = vm(&lab, "db");
    lab.start_witness().unwrap();
    start_keepers(&lab, &first);
    let events = EventWatch::start(&lab);
    lab.ask("a", &Request::Start { force: false }).unwrap();
    expect(&lab, &events, 0, "protection", |e| matches!(e.kind, EventKind::Protected { .. }));
    let life = generation(&lab);
    let snapshot = Request::Snapshot { name: "first".parse().unwrap(), parent: None, freeze: FreezeChoice::Never };
    lab.keeper("a").unwrap().carry_out(&snapshot).unwrap();

    // It is renamed while it runs and is protected: on both hosts, and for good.
    let mark = events.mark();
    let renamed = EventKind::Renamed { from: name("db"), to: name("db-old") };
    let done = lab.keeper("b").unwrap().carry_out(&Request::Rename { name: name("db-old") }).unwrap();
    assert_eq!(done, Some(renamed.clone()), "whichever host is asked");
    for host in HOSTS {
        expect(&lab, &events, mark, "renaming", |e| e.host.as_str() == host && e.kind == renamed);
        assert_eq!(led_to(&lab, host, "db-old"), Some(first.id.to_string()));
        assert_eq!(led_to(&lab, host, "db"), None);
    }
    lab.ask("a", &Request::Switchover).unwrap();
    expect(&lab, &events, mark, "protection", |e| {
        e.host.as_str() == "b" && matches!(e.kind, EventKind::Protected { .. })
    });
    lab.stop_keeper("a").unwrap();
    lab.start_keeper("a").unwrap();
    assert_eq!(lab.keeper("a").unwrap().status().unwrap().vm, name("db-old"));

    // While it runs nobody retires it; then the host that had it does.
    assert_eq!(refused(&lab, "b", &Request::Retire { force: true }), Refusal::RunsHere);
    lab.ask("b", &Request::Stop).unwrap();
    expect(&lab, &events, mark, "end", |e| matches!(e.kind, EventKind::Stopped { .. }));
    for host in HOSTS {
        let keeper = lab.keeper(host).unwrap();
        wait_until("standby", || keeper.status().is_ok_and(|s| s.role == Role::Standby));
    }
    let held = refused(&lab, "a", &Request::Retire { force: false });
    assert!(matches!(&held, Refusal::HeldElsewhere { host: Some(host), .. } if host.as_str() == "b"), "{held:?}");
    let retired = lab.keeper("b").unwrap().carry_out(&Request::Retire { force: false }).unwrap();
    assert!(matches!(retired, Some(EventKind::Retired { .. })), "{retired:?}");
    for host in HOSTS {
        expect(&lab, &events, mark, "retirement", |e| {
            e.host.as_str() == host && matches!(e.kind, EventKind::Retired { .. })
        });
        let started = refused(&lab, host, &Request::Start { force: true });
        assert!(matches!(started, Refusal::Retired { .. }), "{started:?}");
        lab.stop_keeper(host).unwrap();
    }
    drop(events);

    // Another VM has the name that the first one was made with.
    let second = vm(&lab, "db");
    start_keepers(&lab, &second);
    for host in HOSTS {
        let keeper = lab.keeper(host).unwrap();
        let status = keeper.status().unwrap();
        assert_eq!((status.id, status.vm, status.term, status.retired), (second.id, name("db"), Term(0), None));
        assert_eq!(led_to(&lab, host, "db"), Some(second.id.to_string()));
        assert_eq!(left(&lab, host, second.id), Vec::<PathBuf>::new());
        let told = keeper.events(Position::START, std::time::Duration::ZERO).unwrap().events;
        let of_first = |e: &Event| !matches!(e.kind, EventKind::CertificateTaken { .. });
        assert!(!told.iter().any(of_first), "{told:?}");
    }
    let events = EventWatch::start(&lab);
    lab.ask("a", &Request::Start { force: false }).unwrap();
    expect(&lab, &events, 0, "boot", |e| e.kind == EventKind::Booted { term: Term(1) });
    expect(&lab, &events, 0, "log", |e| matches!(e.kind, EventKind::NonVolatile { .. }));
    expect(&lab, &events, 0, "protection", |e| matches!(e.kind, EventKind::Protected { .. }));
    assert_ne!(generation(&lab), life, "a life of its own");
    assert!(!left(&lab, "a", second.id).is_empty(), "it has a log");
    lab.ask("a", &Request::Stop).unwrap();
    expect(&lab, &events, 0, "end", |e| matches!(e.kind, EventKind::Stopped { .. }));
    let keeper = lab.keeper("a").unwrap();
    wait_until("standby", || keeper.status().is_ok_and(|s| s.role == Role::Standby));
    // The snapshot of the first one is not its own.
    let other = Request::Restore { name: "first".parse().unwrap(), force: false, clone: false };
    let error = keeper.carry_out(&other).unwrap_err().to_string();
    assert!(error.contains(&first.id.to_string()), "{error}");
}
