//! Certificates are renewed and revoked under a protected VM: nothing is started anew, and the VM goes on.

mod support;

use std::fs;

use ninefold_lab::topology::WITNESS;
use ninefold_model::HostName;
use ninefold_model::event::EventKind;
use ninefold_transport::authority::Which;
use ninefold_transport::{Authority, Validity};
use support::{Scenario, wait_until};

#[test]
fn a_backup_that_is_revoked_is_lost_and_comes_back_with_another_certificate() {
    let mut scenario = Scenario::start("certificates");
    let authority = Authority::open(scenario.lab.dir().join("authority")).unwrap();
    let issue = |scenario: &Scenario, host: &str| {
        let host: HostName = host.parse().unwrap();
        let identity = scenario.lab.run_dir(host.as_str()).join("identity");
        authority.issue(&host, identity, Validity::days(365)).unwrap();
    };

    // A session goes on over a renewal.
    let mark = scenario.events.mark();
    for host in ["a", "b"] {
        issue(&scenario, host);
        scenario.expect(mark, host, "certificate_taken", |k| matches!(k, EventKind::CertificateTaken { .. }));
    }
    scenario.expect_writes(20);
    let lost = |k: &EventKind| matches!(k, EventKind::BackupLost { .. } | EventKind::Unprotected { .. });
    assert!(!scenario.events.all()[mark..].iter().any(|e| lost(&e.kind)), "the renewal has cost the backup");

    // The backup is revoked: at the witness first, so that it cannot claim the VM when its session ends.
    let (mark, primary, backup) = (scenario.events.mark(), scenario.primary.clone(), scenario.backup.clone());
    let revoked: HostName = backup.parse().unwrap();
    authority.revoke(Which::Host(&revoked)).unwrap();
    let bring = |host: &str| {
        fs::copy(authority.list_path(), scenario.lab.run_dir(host).join("identity/crl.pem")).unwrap();
    };
    bring(WITNESS);
    wait_until("list at the witness", || scenario.lab.log_tail(WITNESS, "witness.log", 40).contains("it names 2"));
    bring(&primary);
    scenario.expect(
        mark,
        &primary,
        "host_distrusted",
        |k| matches!(k, EventKind::HostDistrusted { peer, links: 1.., .. } if *peer == revoked),
    );
    scenario.expect(mark, &primary, "unprotected", |k| matches!(k, EventKind::Unprotected { .. }));
    scenario.expect_writes(20);
    // Why there is none is said for as long as there is none.
    wait_until("reason", || {
        let status = scenario.lab.keeper(&primary).unwrap().status();
        status.is_ok_and(|s| s.no_backup.is_some_and(|why| why.contains("is revoked by this host's crl.pem")))
    });

    let mark = scenario.events.mark();
    issue(&scenario, &backup);
    scenario.settle(mark);
    scenario.finish();
}
