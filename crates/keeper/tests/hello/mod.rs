//! A session's greeting.

use ninefold_model::Term;
use ninefold_model::spec::{Accel, EpochPolicy};
use ninefold_replica::stream::{BlockInfo, Hello, Layout};

/// From host a, of a VM whose memory is one block of so many bytes.
pub fn hello(session: u64, memory: u64) -> Hello {
    Hello {
        session,
        from: "a".parse().unwrap(),
        term: Term(session),
        spec: serde_json::from_str(
            r#"{"id":"3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4","name":"db","hardware":{"memory_mib":256,"boot":{"linux":{"cmdline":"quiet"}},"nics":[]}}"#,
        )
        .unwrap(),
        epoch_policy: EpochPolicy::default(),
        qemu: "10.0.2".into(),
        machine: "pc-i440fx-7.2".into(),
        cpu: "qemu64".into(),
        accel: Accel::Tcg,
        layout: Layout::new(vec![BlockInfo { name: "ram".into(), used: memory, total: memory }]).unwrap(),
        lanes: 1,
        health: Default::default(),
        reign: None,
        origin: None,
        generation: None,
    }
}
