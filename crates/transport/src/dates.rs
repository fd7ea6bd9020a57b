//! From when to when a certificate is good, and what to say of it when TLS refuses one for its dates.

use std::fmt;
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

use crate::der::element;

/// A moment, whole seconds since the Unix epoch. It is shown as a date in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcTime(pub u64);

/// Seconds of a day.
pub const DAY: u64 = 86_400;

impl UtcTime {
    /// What this host's clock says; the epoch, if it says something before that.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Days from `now` until this moment, of which the last may be a part of one only; when it is over 0, and then one less each day.
    pub fn days_after(self, now: Self) -> i64 {
        let days = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        if self > now { days((self.0 - now.0).div_ceil(DAY)) } else { -days((now.0 - self.0) / DAY) }
    }

    /// Year, month, day, hour, minute, second.
    fn civil(self) -> [u64; 6] {
        let (days, rest) = (self.0 / DAY, self.0 % DAY);
        // Years that begin in March have their leap day at their end (<https://howardhinnant.github.io/date_algorithms.html>).
        let z = days + 719_468;
        let (era, of_era) = (z / 146_097, z % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let m = (5 * of_year + 2) / 153;
        let day = of_year - (153 * m + 2) / 5 + 1;
        let month = if m < 10 { m + 3 } else { m - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        [year, month, day, rest / 3600, rest / 60 % 60, rest % 60]
    }

    /// The reverse of it; the epoch for what lies before it. None for what is no date.
    fn of_civil([year, month, day, h, m, s]: [u64; 6]) -> Option<Self> {
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || h > 23 || m > 59 || s > 60 {
            return None;
        }
        let year = if month <= 2 { year.checked_sub(1)? } else { year };
        let (era, year_of_era) = (year / 400, year % 400);
        let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = (era * 146_097 + of_era).saturating_sub(719_468);
        Some(Self(days * DAY + h * 3600 + m * 60 + s))
    }

    /// UTCTime (two digits for the year) or GeneralizedTime, as RFC 5280, section 4.1.2.5, allows them.
    pub(crate) fn parse(tag: u8, text: &[u8]) -> Option<Self> {
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
        let mut civil = [year, 0, 0, 0, 0, 0];
        if rest.len() != 10 {
            return None;
        }
        for (part, digits) in civil[1..].iter_mut().zip(rest.chunks(2)) {
            *part = number(digits)?;
        }
        Self::of_civil(civil)
    }
}

impl From<SystemTime> for UtcTime {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()))
    }
}

impl From<&UnixTime> for UtcTime {
    fn from(time: &UnixTime) -> Self {
        Self(time.as_secs())
    }
}

impl From<UtcTime> for UnixTime {
    fn from(time: UtcTime) -> Self {
        UnixTime::since_unix_epoch(Duration::from_secs(time.0))
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [year, month, day, h, m, s] = self.civil();
        write!(f, "{year}-{month:02}-{day:02} {h:02}:{m:02}:{s:02} UTC")
    }
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dates {
    pub(crate) not_before: UtcTime,
    pub(crate) not_after: UtcTime,
}

impl Dates {
    /// Those of a certificate in DER (RFC 5280, section 4.1); none if it cannot be read.
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        let certificate = element(der)?.content;
        let signed = element(certificate)?.content;
        let version = element(signed)?;
        // The version may be left out; then come serial number, algorithm, issuer.
        let mut rest = if version.tag == 0xa0 { version.rest } else { signed };
        for _ in 0..3 {
            rest = element(rest)?.rest;
        }
        let validity = element(rest)?.content;
        let from = element(validity)?;
        let to = element(from.rest)?;
        Some(Self {
            not_before: UtcTime::parse(from.tag, from.content)?,
            not_after: UtcTime::parse(to.tag, to.content)?,
        })
    }

    pub(crate) fn hold(&self, now: UtcTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

impl fmt::Display for Dates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "valid from {} to {}", self.not_before, self.not_after)
    }
}

/// A certificate as it is named to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// The host that it names, if it names one.
    pub(crate) host: String,
    /// Its serial number, hexadecimal.
    pub(crate) serial: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the certificate of host {} with the serial number {}", self.host, self.serial)
    }
}

/// What TLS's verdict means, with dates and whose clock or certificate is to be looked at. `own` are the dates and the name of this
/// host's certificate, `peer` names the one that was shown, `now` is what this host's clock says.
pub(crate) fn explain(error: &Error, own: Option<(&Dates, &Named)>, peer: Option<&Named>, now: UtcTime) -> String {
    let dates = own.map(|(dates, _)| dates);
    let of_peer = |what: &str, date: UtcTime| {
        let advice = match dates {
            Some(own) if !own.hold(now) => {
                format!("this host's own certificate is {own}, so that this host's clock is probably wrong")
            }
            _ => "renew that certificate, or set this host's clock if it is wrong".to_owned(),
        };
        format!("its certificate {what} {date}, and this host's clock says {now}: {advice}")
    };
    match (error, dates) {
        (Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }), _) => {
            of_peer("was valid until", not_after.into())
        }
        (Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }), _) => {
            of_peer("is valid from", not_before.into())
        }
        (Error::InvalidCertificate(CertificateError::UnknownIssuer), _) => {
            "its certificate is of another authority than this host's ca.pem".into()
        }
        (Error::InvalidCertificate(CertificateError::Revoked), _) => revoked(peer),
        (Error::AlertReceived(AlertDescription::CertificateExpired), Some(own)) => {
            let advice = match own.hold(now) {
                true => "by this clock it is good, so that the other host's clock is probably wrong",
                false => "renew it, or set this host's clock if it is wrong",
            };
            format!(
                "it finds this host's certificate expired, or not valid yet; that is {own}, and this host's clock says {now}: {advice}"
            )
        }
        (Error::AlertReceived(AlertDescription::CertificateRevoked), _) => {
            let own = own.map_or_else(|| "this host's certificate".to_owned(), |(_, named)| named.to_string());
            format!("it finds {own} revoked: this host needs another one, if it is to be trusted")
        }
        (Error::AlertReceived(AlertDescription::UnknownCA), _) => {
            "it does not trust the authority of this host's certificate".into()
        }
        _ => error.to_string(),
    }
}

/// That a certificate is revoked, and what to do.
pub(crate) fn revoked(of: Option<&Named>) -> String {
    let of = of.map_or_else(|| "its certificate".to_owned(), ToString::to_string);
    format!("{of} is revoked by this host's crl.pem: issue that host another one, if it is to be trusted")
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
            assert_eq!(UtcTime(unix).to_string(), text);
            assert_eq!(UtcTime::of_civil(UtcTime(unix).civil()), Some(UtcTime(unix)));
        }
    }

    #[test]
    fn the_dates_of_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path().join("authority"), Validity::days(1)).unwrap();
        // Before 2050 it is a UTCTime, from then on a GeneralizedTime.
        for (from, to) in [(951_782_400, 1_709_251_199), (1_709_251_199, 4_102_444_800)] {
            let out = dir.path().join("a");
            authority.issue(&"a".parse().unwrap(), &out, Validity { not_before: at(from), not_after: at(to) }).unwrap();
            let der = CertificateDer::from_pem_file(out.join("cert.pem")).unwrap();
            let dates = Dates::of(&der).unwrap();
            assert_eq!(dates, Dates { not_before: UtcTime(from), not_after: UtcTime(to) });
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
    fn days_are_counted_to_the_end() {
        let after = |seconds: u64| UtcTime(seconds).days_after(UtcTime(10 * DAY));
        assert_eq!(
            [after(0), after(9 * DAY), after(10 * DAY - 1), after(10 * DAY), after(10 * DAY + 1), after(40 * DAY)],
            [-10, -1, 0, 0, 1, 30]
        );
    }

    #[test]
    fn whose_certificate_is_revoked_is_said() {
        let named = Named { host: "b".into(), serial: "4f01".into() };
        let error = Error::InvalidCertificate(CertificateError::Revoked);
        let told = explain(&error, None, Some(&named), UtcTime(0));
        assert_eq!(
            told,
            "the certificate of host b with the serial number 4f01 is revoked by this host's crl.pem: issue that host another one, if it \
             is to be trusted"
        );
        let own = Dates { not_before: UtcTime(0), not_after: UtcTime(9) };
        let alert = Error::AlertReceived(AlertDescription::CertificateRevoked);
        let told = explain(&alert, Some((&own, &named)), None, UtcTime(0));
        assert!(told.starts_with("it finds the certificate of host b with the serial number 4f01 revoked: "), "{told}");
    }

    #[test]
    fn whose_clock_is_wrong_is_said() {
        let own = Dates { not_before: UtcTime(1000), not_after: UtcTime(2000) };
        let named = Named { host: "a".into(), serial: "4f".into() };
        let expired = |now: u64| {
            let (time, not_after) = (UnixTime::since_unix_epoch(Duration::from_secs(now)), Duration::from_secs(1500));
            let not_after = UnixTime::since_unix_epoch(not_after);
            let error = Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after });
            explain(&error, Some((&own, &named)), None, UtcTime(now))
        };
        assert_eq!(
            expired(1600),
            "its certificate was valid until 1970-01-01 00:25:00 UTC, and this host's clock says 1970-01-01 00:26:40 UTC: renew that \
             certificate, or set this host's clock if it is wrong"
        );
        assert!(expired(3000).ends_with("to 1970-01-01 00:33:20 UTC, so that this host's clock is probably wrong"));
        let alert = Error::AlertReceived(AlertDescription::CertificateExpired);
        let told = explain(&alert, Some((&own, &named)), None, UtcTime(1600));
        assert!(told.contains("valid from 1970-01-01 00:16:40 UTC to 1970-01-01 00:33:20 UTC"), "{told}");
        assert!(told.ends_with("so that the other host's clock is probably wrong"), "{told}");
        let told = explain(&alert, Some((&own, &named)), None, UtcTime(3000));
        assert!(told.ends_with("set this host's clock if it is wrong"), "{told}");
    }
}
