//! What two texts have in common when they tell of the same fault at two times: all but numbers, addresses and ports.

use std::net::{IpAddr, SocketAddr};

/// The text with `#` for each number and each network address, so that two reports of one fault are equal. Names that begin
/// with a letter stay as they are, with their digits: two volumes are two.
pub fn likeness(text: &str) -> String {
    let mut like = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = rest.find(|c: char| !is_of_address(c)).unwrap_or(rest.len());
        if len == 0 {
            like.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(len);
        // A colon or a full stop at the end belongs to the sentence.
        let bare = word.trim_end_matches([':', '.', ']']);
        let closed = word.get(..bare.len() + 1).filter(|w| w.ends_with(']') && is_address(w));
        match closed.unwrap_or(bare) {
            address if is_address(address) => {
                like.push('#');
                like.push_str(&word[address.len()..]);
            }
            _ => without_numbers(word, &mut like),
        }
        rest = after;
    }
    like
}

fn is_of_address(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '[' | ']' | '%' | '_' | '-')
}

fn is_address(word: &str) -> bool {
    let host = word.strip_prefix('[').and_then(|w| w.strip_suffix(']')).unwrap_or(word);
    word.parse::<SocketAddr>().is_ok()
        || host.split('%').next().unwrap_or_default().parse::<IpAddr>().is_ok()
        // An IPv6 address with a port and a zone by name is known to no parser.
        || (word.starts_with('[') && word.contains('%') && word.contains("]:"))
}

/// Parts between punctuation that begin with a digit become `#`.
fn without_numbers(word: &str, into: &mut String) {
    let mut former = None;
    let mut skipping = false;
    for c in word.chars() {
        let begins = former.is_none_or(|f: char| !f.is_ascii_alphanumeric());
        if begins && c.is_ascii_digit() {
            into.push('#');
            skipping = true;
        } else if !c.is_ascii_alphanumeric() {
            skipping = false;
        }
        if !skipping {
            into.push(c);
        }
        former = Some(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reports_of_one_fault_are_alike() {
        for (one, other) in [
            ("10.8.0.2:43210: CertificateExpired", "10.8.0.3:7: CertificateExpired"),
            ("refused [fe80::1]:700", "refused [fd09:aa::b]:43"),
            ("refused [fe80::1%eth0]:700", "refused [fe80::2%3]:43"),
            ("at fe80::1 it", "at fe80::abc it"),
            ("waited 170ms, term 3.", "waited 9ms, term 12345."),
            ("epoch 9: 0x1f", "epoch 10: 0x2"),
        ] {
            assert_eq!(likeness(one), likeness(other), "{one} and {other}");
        }
    }

    #[test]
    fn two_faults_are_not() {
        for (one, other) in [("volume data1 fails", "volume data2 fails"), ("host b", "host c"), ("é1", "è1")] {
            assert_ne!(likeness(one), likeness(other), "{one} and {other}");
        }
        assert_eq!(likeness("host b: no room (28)"), "host b: no room (#)");
    }
}
