//! An authority's certificate and key as they are found: what of them the certificates that it issues have to repeat.

use std::path::Path;

use rcgen::string::{Ia5String, PrintableString};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use webpki::EndEntityCert;

use super::error::{Result, unfit};
use crate::dates::Dates;
use crate::der::{self, SEQUENCE};

/// id-ce-subjectKeyIdentifier.
const SUBJECT_KEY: &[u8] = &[0x55, 0x1d, 0x0e];
/// id-at-commonName.
const COMMON_NAME: &[u64] = &[2, 5, 4, 3];

/// An authority that can issue.
pub(super) struct Found {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) key_id: KeyIdMethod,
    pub(super) certificate: CertificateDer<'static>,
    /// How people call it.
    pub(super) name: String,
    pub(super) dates: Dates,
}

/// Reads an authority's certificate and its key, both PEM.
pub(super) fn found(cert_path: &Path, cert: &str, key_path: &Path, key: &str) -> Result<Found> {
    let mut all = CertificateDer::pem_slice_iter(cert.as_bytes());
    let (first, second) = (all.next(), all.next());
    let certificate = match (first, second) {
        (Some(Ok(certificate)), None) => certificate,
        (None, _) => return Err(unfit(cert_path, "holds no certificate")),
        (Some(Err(error)), _) | (_, Some(Err(error))) => {
            return Err(unfit(cert_path, format!("is not PEM: {error:?}")));
        }
        (Some(Ok(_)), Some(Ok(_))) => {
            return Err(unfit(cert_path, "holds several certificates: one is the authority's"));
        }
    };
    let key = KeyPair::from_pem(key).map_err(|error| {
        let advice =
            "a key is PKCS #8 here ('BEGIN PRIVATE KEY'; `openssl pkcs8 -topk8 -nocrypt` makes one of another)";
        unfit(key_path, format!("{error}: {advice}"))
    })?;
    let unreadable = || unfit(cert_path, "is not a certificate that can be read");
    let parsed = EndEntityCert::try_from(&certificate).map_err(|_| unreadable())?;
    let public = parsed.subject_public_key_info();
    if public.as_ref() != key.subject_public_key_info().as_slice() {
        return Err(unfit(key_path, format!("is not the key of {}", cert_path.display())));
    }
    let (distinguished, name) = subject(parsed.subject()).ok_or_else(|| {
        unfit(
            cert_path,
            "has a name that cannot be repeated here: each of its parts must be of another kind, and plain text",
        )
    })?;
    let dates = Dates::of(&certificate).ok_or_else(unreadable)?;
    let key_id = subject_key(&certificate).map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified);
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished;
    params.key_identifier_method = key_id.clone();
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(Found { issuer: Issuer::new(params, key), key_id, certificate, name, dates })
}

/// A name (RFC 5280, section 4.1.2.4), without its outer tag; and its common name, or else its last part.
fn subject(content: &[u8]) -> Option<(DistinguishedName, String)> {
    const SET: u8 = 0x31;
    let (mut name, mut shown, mut read) = (DistinguishedName::new(), None, 0);
    for set in der::elements(content) {
        read += set.whole.len();
        let part = der::tagged(set.content, SEQUENCE).filter(|part| set.tag == SET && part.rest.is_empty())?;
        let id = der::element(part.content)?;
        let value = der::element(id.rest)?;
        let text = std::str::from_utf8(value.content).ok()?;
        let value = match value.tag {
            0x0c => DnValue::Utf8String(text.to_owned()),
            0x13 => DnValue::PrintableString(PrintableString::try_from(text).ok()?),
            0x16 => DnValue::Ia5String(Ia5String::try_from(text).ok()?),
            _ => return None,
        };
        let arcs = arcs(id.content)?;
        let kind = DnType::CustomDnType(arcs.clone());
        if name.get(&kind).is_some() {
            return None;
        }
        name.push(kind, value);
        if shown.is_none() || arcs == COMMON_NAME {
            shown = Some(text.to_owned());
        }
    }
    (read == content.len()).then_some((name, shown?))
}

/// The numbers of an object identifier (X.690, section 8.19).
fn arcs(content: &[u8]) -> Option<Vec<u64>> {
    let mut arcs = Vec::new();
    let mut n: u64 = 0;
    for byte in content {
        n = n.checked_mul(128)? + u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            match arcs[..] {
                [] => arcs.extend([(n / 40).min(2), n - 40 * (n / 40).min(2)]),
                _ => arcs.push(n),
            }
            n = 0;
        }
    }
    (arcs.len() > 1 && content.last()? & 0x80 == 0).then_some(arcs)
}

/// The subject key identifier of a certificate.
fn subject_key(certificate: &[u8]) -> Option<Vec<u8>> {
    let signed = der::signed(certificate)?;
    let content = der::tagged(signed.message, SEQUENCE)?.content;
    let extensions = der::elements(content).find(|e| e.tag == 0xa3)?;
    der::extension(extensions.content, SUBJECT_KEY).and_then(der::octets).map(<[u8]>::to_vec)
}
