//! What is shown of an authority.

use std::path::Path;

use ninefold_shell::output::{self, Output};
use ninefold_transport::authority::index::{Entry, Index};
use ninefold_transport::{Authority, ListState, UtcTime};
use serde::Serialize;

use crate::error::CliError;

/// A certificate that was issued.
#[derive(Debug, Serialize)]
struct Certificate {
    host: String,
    serial: String,
    issued_s: u64,
    valid_until_s: u64,
    revoked_s: Option<u64>,
    state: &'static str,
}

impl Certificate {
    fn of(entry: &Entry, now: UtcTime) -> Self {
        let state = match entry.revoked {
            Some(_) => "revoked",
            None if entry.is_in_force(now) => "in-force",
            None => "expired",
        };
        Self {
            host: entry.host.to_string(),
            serial: entry.serial.clone(),
            issued_s: entry.issued.0,
            valid_until_s: entry.not_after.0,
            revoked_s: entry.revoked.map(|at| at.0),
            state,
        }
    }
}

/// A host was issued a certificate.
pub fn issued(entry: &Entry, out: &Path, output: &Output) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Issued<'a> {
        #[serde(flatten)]
        certificate: Certificate,
        out: &'a Path,
    }
    let shown = Issued { certificate: Certificate::of(entry, UtcTime::now()), out };
    let told = output.show(&shown, || {
        format!(
            "host {} has a certificate until {} (serial number {})\ncopy {} to the host, as the directory of its identity",
            entry.host,
            entry.not_after,
            entry.serial,
            out.display()
        )
    });
    Ok(told?)
}

/// Certificates were revoked.
pub fn revoked(entries: &[Entry], list: &Path, output: &Output) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Revoked<'a> {
        revoked: Vec<Certificate>,
        list: &'a Path,
    }
    let now = UtcTime::now();
    let shown = Revoked { revoked: entries.iter().map(|e| Certificate::of(e, now)).collect(), list };
    let told = output.show(&shown, || {
        let lines = entries.iter().map(|e| format!("revoked: host {}, serial number {}\n", e.host, e.serial));
        let copy = "it counts once the list is there: copy it to every host as crl.pem in its identity's directory, the witness first";
        format!("{}the list is {}\n{copy}", lines.collect::<String>(), list.display())
    });
    Ok(told?)
}

/// A list was made.
pub fn list_made(state: &ListState, list: &Path, output: &Output) -> Result<(), CliError> {
    let shown = serde_json::json!({ "revoked": state.revoked, "next_update_s": state.next_update.0, "out": list });
    let told = output.show(&shown, || {
        let (names, next) = (state.revoked, state.next_update);
        format!("the list names {names}; the next one is due by {next}\nthe list is {}", list.display())
    });
    Ok(told?)
}

/// What was issued.
pub fn certificates(index: &Index, now: UtcTime, output: &Output) -> Result<(), CliError> {
    let all: Vec<_> = index.entries.iter().map(|e| Certificate::of(e, now)).collect();
    let told = output.show(&serde_json::json!({ "certificates": all }), || {
        if all.is_empty() {
            return "no certificates".into();
        }
        let mut table = output::table(&["HOST", "STATE", "VALID UNTIL", "REVOKED", "SERIAL NUMBER"]);
        for c in &all {
            let revoked = c.revoked_s.map_or_else(String::new, |at| UtcTime(at).to_string());
            table.add_row([
                c.host.clone(),
                c.state.into(),
                UtcTime(c.valid_until_s).to_string(),
                revoked,
                c.serial.clone(),
            ]);
        }
        output::text(&table)
    });
    Ok(told?)
}

/// The authority itself.
pub fn authority(dir: &Path, authority: &Authority, output: &Output) -> Result<(), CliError> {
    let index = authority.index()?;
    let list = authority.state_of(&authority.latest_list()?)?;
    let (from, until) = authority.validity();
    let (hosts, issued) = (index.hosts().len(), index.entries.len());
    let shown = serde_json::json!({
        "ca": dir, "name": authority.name(), "valid_from_s": from.0, "valid_until_s": until.0, "hosts": hosts,
        "certificates": issued,
        "list": { "number": index.list_number, "revoked": list.revoked, "next_update_s": list.next_update.0 },
    });
    let told = output.show(&shown, || {
        format!(
            "{} in {}\nvalid until {until}\n{issued} certificates were issued, to {hosts} hosts\nthe revocation list (number {}) names {}; \
             the next one is due by {}",
            authority.name(),
            dir.display(),
            index.list_number,
            list.revoked,
            list.next_update
        )
    });
    Ok(told?)
}
