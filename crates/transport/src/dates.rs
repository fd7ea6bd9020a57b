//! From when to when a certificate is good, and what to say of it when TLS refuses one for its dates.

use std::fmt;
use std::time::SystemTime;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

/// A second in UTC: year, month, day, hour, minute, second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Second([u64; 6]);

impl Second {
    /// Of a number of seconds since the Unix epoch.
    fn of_unix(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Years that begin in March have their leap day at their end (<https://howardhinnant.github.io/date_algorithms.html>).
        let z = days + 719_468;
        let (era, of_era) = (z / 146_097, z % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let m = (5 * of_year + 2) / 153;
        let day = of_year - (153 * m + 2) / 5 + 1;
        let month = if m < 10 { m + 3 } else { m - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Self([year, month, day, rest / 3600, rest / 60 % 60, rest % 60])
    }

    /// What this host's clock says.
    pub(crate) fn now() -> Self {
        Self::of_unix(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()))
    }

    /// UTCTime (two digits for the year) or GeneralizedTime, as RFC 5280, section 4.1.2.5, allows them.
    fn parse(tag: u8, text: &[u8]) -> Option<Self> {
        let digits = text.strip_suffix(b"Z")?;
        let (year, rest) = digits.split_at_checked(if tag == 0x17 { 2 } else { 4 })?;
        let number = |digits: &[u8]| {
            let all = digits.iter().all(u8::is_ascii_digit);
            all.then(|| digits.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
        };
        let year = match (tag, number(year)?) {
            (0x17, year) => year + if year < 50 { 2000 } else { 1900 },
            (0x18, year) => year,
            _ => return None,
        };
        let mut second = Self([year, 0, 0, 0, 0, 0]);
        if rest.len() != 10 {
            return None;
        }
        for (part, digits) in second.0[1..].iter_mut().zip(rest.chunks(2)) {
            *part = number(digits)?;
        }
        Some(second)
    }
}

impl From<&UnixTime> for Second {
    fn from(time: &UnixTime) -> Self {
        Self::of_unix(time.as_secs())
    }
}

impl fmt::Display for Second {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [year, month, day, h, m, s] = self.0;
        write!(f, "{year}-{month:02}-{day:02} {h:02}:{m:02}:{s:02} UTC")
    }
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dates {
    not_before: Second,
    not_after: Second,
}

impl Dates {
    /// Those of a certificate in DER (RFC 5280, section 4.1); none if it cannot be read.
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate, _) = element(der)?;
        let (_, signed, _) = element(certificate)?;
        let (tag, _, after) = element(signed)?;
        // The version may be left out; then come serial number, algorithm, issuer.
        let mut rest = if tag == 0xa0 { after } else { signed };
        for _ in 0..3 {
            rest = element(rest)?.2;
        }
        let (_, validity, _) = element(rest)?;
        let (tag, text, rest) = element(validity)?;
        let not_before = Second::parse(tag, text)?;
        let (tag, text, _) = element(rest)?;
        Some(Self { not_before, not_after: Second::parse(tag, text)? })
    }

    fn hold(&self, now: Second) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

impl fmt::Display for Dates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "valid from {} to {}", self.not_before, self.not_after)
    }
}

/// The tag, the content and what follows of a DER element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// What TLS's verdict means, with dates and whose clock or certificate is to be looked at. `own` are the dates of this host's
/// certificate, `now` is what its clock says.
pub(crate) fn explain(error: &Error, own: Option<&Dates>, now: Second) -> String {
    let of_peer = |what: &str, date: Second| {
        let advice = match own {
            Some(own) if !own.hold(now) => {
                format!("this host's own certificate is {own}, so that this host's clock is probably wrong")
            }
            _ => "renew that certificate, or set this host's clock if it is wrong".to_owned(),
        };
        format!("its certificate {what} {date}, and this host's clock says {now}: {advice}")
    };
    match (error, own) {
        (Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }), _) => {
            of_peer("was valid until", not_after.into())
        }
        (Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }), _) => {
            of_peer("is valid from", not_before.into())
        }
        (Error::InvalidCertificate(CertificateError::UnknownIssuer), _) => {
            "its certificate is of another authority than this host's ca.pem".into()
        }
        (Error::AlertReceived(AlertDescription::CertificateExpired), Some(own)) => {
            let advice = match own.hold(now) {
                true => "by this clock it is good, so that the other host's clock is probably wrong",
                false => "renew it, or set this host's clock if it is wrong",
            };
            format!(
                "it finds this host's certificate expired, or not valid yet; that is {own}, and this host's clock says {now}: {advice}"
            )
        }
        (Error::AlertReceived(AlertDescription::UnknownCA), _) => {
            "it does not trust the authority of this host's certificate".into()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::{Authority, Validity};

    fn at(unix: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(unix)
    }

    #[test]
    fn seconds() {
        // As `date -u -d @N` prints them.
        for (unix, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (4_102_444_800, "2100-01-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(Second::of_unix(unix).to_string(), text);
        }
    }

    #[test]
    fn the_dates_of_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path().join("authority"), Validity::days(1)).unwrap();
        // Before 2050 it is a UTCTime, from then on a GeneralizedTime.
        for (from, to) in [(951_782_400, 1_709_251_199), (1_709_251_199, 4_102_444_800)] {
            authority
                .issue(&"a".parse().unwrap(), dir.path(), Validity { not_before: at(from), not_after: at(to) })
                .unwrap();
            let der = CertificateDer::from_pem_file(dir.path().join("cert.pem")).unwrap();
            let dates = Dates::of(&der).unwrap();
            assert_eq!(dates, Dates { not_before: Second::of_unix(from), not_after: Second::of_unix(to) });
            // Whatever is cut off or changed is no reason to panic.
            for at in 0..der.len() {
                let _ = Dates::of(&der[..at]);
                let mut bad = der.to_vec();
                bad[at] ^= 0xff;
                let _ = Dates::of(&bad);
            }
        }
    }

    #[test]
    fn whose_clock_is_wrong_is_said() {
        let own = Dates { not_before: Second::of_unix(1000), not_after: Second::of_unix(2000) };
        let expired = |now: u64| {
            let (time, not_after) = (UnixTime::since_unix_epoch(Duration::from_secs(now)), Duration::from_secs(1500));
            let not_after = UnixTime::since_unix_epoch(not_after);
            let error = Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after });
            explain(&error, Some(&own), Second::of_unix(now))
        };
        assert_eq!(
            expired(1600),
            "its certificate was valid until 1970-01-01 00:25:00 UTC, and this host's clock says 1970-01-01 00:26:40 UTC: renew that \
             certificate, or set this host's clock if it is wrong"
        );
        assert!(expired(3000).ends_with("to 1970-01-01 00:33:20 UTC, so that this host's clock is probably wrong"));
        let alert = Error::AlertReceived(AlertDescription::CertificateExpired);
        let told = explain(&alert, Some(&own), Second::of_unix(1600));
        assert!(told.contains("valid from 1970-01-01 00:16:40 UTC to 1970-01-01 00:33:20 UTC"), "{told}");
        assert!(told.ends_with("so that the other host's clock is probably wrong"), "{told}");
        assert!(explain(&alert, Some(&own), Second::of_unix(3000)).ends_with("set this host's clock if it is wrong"));
    }
}
