//! What to do about an error of an authority.

use std::io;

use ninefold_transport::AuthorityError;

/// Advice for an error.
pub fn help(error: &AuthorityError) -> Option<String> {
    let text = match error {
        AuthorityError::Exists { .. } => {
            "choose another directory with --ca; `ninefold ca show` shows the authority that is there"
        }
        AuthorityError::Missing { .. } => "`ninefold ca init` makes one; name it with --ca DIR",
        AuthorityError::Readable { path, .. } => {
            let path = path.display();
            return Some(format!(
                "if others could have read the key, make a new authority; if not: `chmod go= {path}`, and try again"
            ));
        }
        AuthorityError::Index { .. } => {
            "put back a copy of the authority's directory that is whole: nothing was changed"
        }
        AuthorityError::Busy { .. } => "try again when that is done",
        AuthorityError::ClockNotSet { .. } => {
            "set it, and try again: certificates would begin and end at the wrong time"
        }
        AuthorityError::NotInForce { .. } => {
            "set this host's clock, if that is wrong. Else make a new authority in another directory (`ninefold ca init --ca DIR`), and \
             let the hosts trust both for a while: see docs/guides/operate.md, 'Certificates'"
        }
        AuthorityError::HasOne { host, .. } => {
            return Some(format!(
                "`ninefold ca renew {host}` issues the next one; `ninefold ca revoke {host}` before, if somebody may know its key"
            ));
        }
        AuthorityError::UnknownHost { known, .. } if known.is_empty() => {
            "no host has been issued one yet: `ninefold ca issue`"
        }
        AuthorityError::UnknownHost { known, .. } => {
            let known: Vec<_> = known.iter().map(ToString::to_string).collect();
            return Some(format!("hosts that have: {}; `ninefold ca issue` issues a host its first", known.join(", ")));
        }
        AuthorityError::NothingToRevoke { .. } | AuthorityError::AlreadyRevoked { .. } => {
            "`ninefold ca list` shows them; `ninefold ca crl --out FILE` writes the list that names those that are revoked"
        }
        AuthorityError::UnknownSerial { .. } => {
            "`ninefold ca list` shows them; one that was issued before the authority was taken over is revoked with --cert FILE"
        }
        AuthorityError::Out { .. } => "choose another directory with --out",
        AuthorityError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "run it as who owns the authority's directory"
        }
        AuthorityError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => "is the path right?",
        AuthorityError::Unfit { .. } => {
            "an authority is taken over from its certificate (PEM, one) and its key (PEM, PKCS #8, not encrypted)"
        }
        AuthorityError::File { .. } | AuthorityError::Make { .. } | AuthorityError::Made(_) => return None,
    };
    Some(text.to_owned())
}
