//! The authority through the command: each verb, and each of its errors.

mod fixture;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use fixture::{fails, json, ok};
use ninefold_transport::Identity;
use serde_json::Value;

/// A directory with an authority and what it issues.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With an authority.
    fn begun() -> Self {
        let bench = Self::new();
        bench.ok(&["init"]);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A command line for this authority. Words with an @ are paths here.
    fn args(&self, words: &[&str]) -> Vec<String> {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let words = words.iter().map(|w| w.strip_prefix('@').map_or_else(|| (*w).to_owned(), path));
        ["ca".to_owned()].into_iter().chain(words).chain(["--ca".to_owned(), path("ca")]).collect()
    }

    fn ok(&self, words: &[&str]) -> String {
        let args = self.args(words);
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn json(&self, words: &[&str]) -> Value {
        let args = self.args(words);
        json(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn fails(&self, words: &[&str]) -> String {
        let args = self.args(words);
        let said = fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 1);
        assert!(said.starts_with("ninefold: ") && said.contains("\nhelp: "), "{said}");
        said
    }

    fn states(&self) -> Vec<String> {
        let list = self.json(&["list"]);
        let text = |c: &Value, field: &str| c[field].as_str().unwrap().to_owned();
        let all = list["certificates"].as_array().unwrap();
        all.iter().map(|c| format!("{} {}", text(c, "host"), text(c, "state"))).collect()
    }
}

#[test]
fn an_authority_from_its_first_day_to_a_stolen_key() {
    let bench = Bench::new();
    let said = bench.fails(&["list"]);
    assert!(said.contains("there is no authority in") && said.contains("`ninefold ca init`"), "{said}");

    let made = bench.json(&["init"]);
    let years = (made["valid_until_s"].as_u64().unwrap() - made["valid_from_s"].as_u64().unwrap()) / 86_400 / 365;
    assert_eq!((years, &made["certificates"], &made["list"]["revoked"]), (10, &0.into(), &0.into()), "{made:#}");
    assert!(bench.fails(&["init"]).contains("already"));
    assert_eq!(bench.ok(&["list"]), "no certificates\n");

    let issued = bench.json(&["issue", "a", "--out", "@a"]);
    let days = (issued["valid_until_s"].as_u64().unwrap() - issued["issued_s"].as_u64().unwrap()) / 86_400;
    assert_eq!((&issued["host"], &issued["state"], days), (&"a".into(), &"in-force".into(), 365), "{issued:#}");
    assert_eq!(Identity::load(bench.path("a")).unwrap().state().serial, issued["serial"].as_str().unwrap());
    let text = bench.ok(&["issue", "w", "--out", "@w", "--days", "90"]);
    assert!(text.starts_with("host w has a certificate until ") && text.contains("copy "), "{text}");

    let said = bench.fails(&["issue", "a", "--out", "@a"]);
    assert!(said.contains("has a certificate already") && said.contains("`ninefold ca renew a`"), "{said}");
    let said = bench.fails(&["renew", "b", "--out", "@b"]);
    assert!(
        said.contains("no certificate has been issued to host b") && said.contains("hosts that have: a, w"),
        "{said}"
    );
    let renewed = bench.json(&["renew", "a", "--out", "@a"]);
    assert_ne!(renewed["serial"], issued["serial"]);
    assert_eq!(bench.states(), ["a in-force", "w in-force", "a in-force"]);

    // The first key of a is stolen; then all of a's.
    let revoked = bench.json(&["revoke", "--serial", issued["serial"].as_str().unwrap(), "--out", "@crl.pem"]);
    assert_eq!(revoked["revoked"][0]["state"], "revoked");
    assert_eq!(fs::read(bench.path("crl.pem")).unwrap(), fs::read(bench.path("ca/crl.pem")).unwrap());
    assert_eq!(bench.states(), ["a revoked", "w in-force", "a in-force"]);
    let text = bench.ok(&["revoke", "a", "--out", "@crl.pem"]);
    assert!(text.starts_with("revoked: host a, ") && text.contains("the witness first"), "{text}");
    assert!(bench.fails(&["revoke", "a"]).contains("no certificate that could be revoked"));
    bench.ok(&["issue", "a", "--out", "@a"]);
    assert_eq!(bench.json(&["list", "--host", "a"])["certificates"].as_array().unwrap().len(), 3);
    let table = bench.ok(&["list"]);
    assert!(table.starts_with("HOST  STATE") && table.contains(renewed["serial"].as_str().unwrap()), "{table}");

    let list = bench.json(&["crl", "--days", "30", "--out", "@crl.pem"]);
    assert_eq!((&list["revoked"], &list["out"]), (&2.into(), &bench.path("crl.pem").to_str().unwrap().into()));
    let shown = bench.json(&["show"]);
    assert_eq!((&shown["hosts"], &shown["certificates"], &shown["list"]["revoked"]), (&2.into(), &4.into(), &2.into()));
    assert_eq!(shown["list"]["next_update_s"], list["next_update_s"]);
    assert!(bench.ok(&["show"]).contains("4 certificates were issued, to 2 hosts"));
}

#[test]
fn what_is_refused_says_what_to_do() {
    let bench = Bench::begun();
    for (words, what, help) in [
        (&["revoke", "a"][..], "no certificate has been issued to host a", "`ninefold ca issue`"),
        (&["list", "--host", "a"], "no certificate has been issued to host a", "`ninefold ca issue`"),
        (&["revoke", "--serial", "abcd"], "serial number abcd", "--cert FILE"),
        (&["revoke", "--cert", "@none.pem"], "cannot read", "is the path right?"),
        (&["issue", "a", "--out", "/"], "cannot be written", "--out"),
        (&["issue", "a", "--out", "@ca"], "has another file", "--out"),
    ] {
        let said = bench.fails(words);
        assert!(said.contains(what) && said.contains(help), "{words:?}: {said}");
    }
    assert_eq!(bench.states(), Vec::<String>::new(), "nothing of it is on record");
    let error: Value = {
        let args = [vec!["--json".to_owned()], bench.args(&["revoke", "b"])].concat();
        serde_json::from_str(&fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 1)).unwrap()
    };
    assert!(error["error"].as_str().unwrap().contains("host b") && error["help"].is_string(), "{error}");

    let key = bench.path("ca/ca-key.pem");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let said = bench.fails(&["list"]);
    assert!(said.contains("(mode 644)") && said.contains("chmod go="), "{said}");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::write(bench.path("ca/index"), "cut").unwrap();
    let said = bench.fails(&["issue", "a", "--out", "@a"]);
    assert!(said.contains("index is damaged") && said.contains("nothing was changed"), "{said}");
    assert!(!bench.path("a").exists());
}

#[test]
fn an_authority_is_not_used_past_its_end() {
    // Made with the means of the command, and a clock that has gone on since.
    let bench = Bench::new();
    let day = std::time::Duration::from_secs(86_400);
    let now = std::time::SystemTime::now();
    let past = ninefold_transport::Validity { not_before: now - 3 * day, not_after: now - day };
    ninefold_transport::Authority::create(bench.path("ca"), past).unwrap();
    let said = bench.fails(&["issue", "a", "--out", "@a"]);
    assert!(said.contains("the authority is good from") && said.contains("trust both for a while"), "{said}");
    // It can still say what is revoked.
    assert_eq!(bench.json(&["crl"])["revoked"], 0);
}

#[test]
fn an_authority_is_taken_over() {
    let first = Bench::begun();
    first.ok(&["issue", "a", "--out", "@a"]);
    let bench = Bench::new();
    for file in ["ca.pem", "ca-key.pem"] {
        fs::copy(first.path("ca").join(file), bench.path(file)).unwrap();
    }
    let wrong = bench.fails(&["init", "--import-cert", "@ca.pem", "--import-key", "@ca.pem"]);
    assert!(wrong.contains("PKCS #8"), "{wrong}");
    let made = bench.json(&["init", "--import-cert", "@ca.pem", "--import-key", "@ca-key.pem"]);
    assert_eq!(made["name"], first.json(&["show"])["name"]);
    let cert = first.path("a/cert.pem");
    let revoked = bench.json(&["revoke", "--cert", cert.to_str().unwrap()]);
    assert_eq!(revoked["revoked"][0]["host"], "a");
    assert!(bench.fails(&["revoke", "--cert", cert.to_str().unwrap()]).contains("was revoked at"));
}

#[test]
fn wrong_usage_is_told_apart() {
    for wrong in [
        &["ca", "issue", "a"][..],
        &["ca", "issue", "Not A Host", "--out", "x"],
        &["ca", "issue", "a", "--out", "x", "--days", "0"],
        &["ca", "revoke"],
        &["ca", "revoke", "a", "--serial", "ab"],
        &["ca", "init", "--import-cert", "ca.pem"],
    ] {
        assert!(fails(wrong, 2).contains("--help"), "{wrong:?}");
    }
}
