//! Revocation lists (RFC 5280, section 5): which certificates an authority has withdrawn.
//!
//! A list is taken only if one of the authorities in `ca.pem` has signed it: one that TLS found to be forged or damaged in a
//! handshake would end every handshake.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateRevocationListDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList, RevocationOptions, RevocationOptionsBuilder};
use webpki::{RevocationCheckDepth, UnknownStatusPolicy};

use crate::crypto;
use crate::dates::UtcTime;
use crate::der::{self, SEQUENCE};

/// id-ce-cRLNumber.
const NUMBER: &[u8] = &[0x55, 0x1d, 0x14];

/// The list of one authority.
struct List {
    der: CertificateRevocationListDer<'static>,
    parsed: CertRevocationList<'static>,
    /// The list's number, without leading zeros: each list of an authority has a higher one than that before it.
    number: Vec<u8>,
    this_update: UtcTime,
    next_update: UtcTime,
    revoked: u64,
}

/// What is known of the lists in use, for people and for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListState {
    /// How many certificates they name.
    pub revoked: u64,
    /// When they were made; of several the oldest.
    pub this_update: UtcTime,
    /// By when the authority has promised the next of them.
    pub next_update: UtcTime,
}

/// The lists in `crl.pem`, at most one of each authority.
#[derive(Default)]
pub(crate) struct Lists(Vec<List>);

impl Lists {
    /// Reads lists in PEM, each signed by one of these authorities. `before` are those that were in use: an older one of the same
    /// authority is refused, since it may name fewer certificates.
    ///
    /// # Errors
    /// Why they cannot be used, for people.
    pub(crate) fn parse(pem: &[u8], authorities: &[TrustAnchor<'_>], before: &Self) -> Result<Self, String> {
        let ders = CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let ders = ders.map_err(|e| format!("is not PEM: {e:?}"))?;
        if ders.is_empty() {
            return Err("holds no revocation list".into());
        }
        let mut lists = Self::default();
        for der in ders {
            let list = List::read(der)?;
            let of: Vec<_> = authorities.iter().filter(|a| a.subject.as_ref() == list.parsed.issuer()).collect();
            match of[..] {
                [] => return Err("is of none of the authorities in ca.pem".into()),
                [authority] if list.is_signed_by(authority) => {}
                [_] => return Err("is not signed by the authority whose name it has".into()),
                // TLS looks for a list by the authority's name alone.
                _ => return Err("cannot be told to be of one of the authorities in ca.pem: they have one name".into()),
            }
            if lists.of(&list).is_some() {
                return Err("has two lists of one authority".into());
            }
            if before.of(&list).is_some_and(|old| (list.number.len(), &list.number) < (old.number.len(), &old.number)) {
                return Err("is older than the list in use".into());
            }
            lists.0.push(list);
        }
        Ok(lists)
    }

    /// Those that are of these authorities.
    pub(crate) fn retained(&self, authorities: &[TrustAnchor<'_>]) -> Self {
        let kept = self.0.iter().filter(|l| authorities.iter().any(|a| l.is_signed_by(a)));
        Self(kept.filter_map(|list| List::read(list.der.clone()).ok()).collect())
    }

    /// Takes those of authorities that have none here; answers whether there were any.
    pub(crate) fn keep(&mut self, others: Self) -> bool {
        let before = self.0.len();
        for list in others.0 {
            if self.of(&list).is_none() {
                self.0.push(list);
            }
        }
        self.0.len() > before
    }

    fn of(&self, other: &List) -> Option<&List> {
        self.0.iter().find(|list| list.parsed.issuer() == other.parsed.issuer())
    }

    /// For rustls.
    pub(crate) fn ders(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.0.iter().map(|list| list.der.clone()).collect()
    }

    /// Calls `judge` with what webpki is to check by them. An authority without a list has revoked nothing.
    pub(crate) fn with_options<T>(&self, judge: impl FnOnce(Option<RevocationOptions<'_>>) -> T) -> T {
        let all: Vec<_> = self.0.iter().map(|list| &list.parsed).collect();
        let options = RevocationOptionsBuilder::new(&all).ok().map(|builder| {
            builder.with_depth(RevocationCheckDepth::Chain).with_status_policy(UnknownStatusPolicy::Allow).build()
        });
        judge(options)
    }

    /// None when there is no list.
    pub(crate) fn state(&self) -> Option<ListState> {
        let next_update = self.0.iter().map(|list| list.next_update).min()?;
        let this_update = self.0.iter().map(|list| list.this_update).min()?;
        Some(ListState { revoked: self.0.iter().map(|list| list.revoked).sum(), this_update, next_update })
    }

    /// Whether these are the same lists.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.der == b.der)
    }
}

impl List {
    fn read(der: CertificateRevocationListDer<'static>) -> Result<Self, String> {
        let parsed =
            OwnedCertRevocationList::from_der(&der).map_err(|e| format!("is not a list that can be used: {e}"))?;
        let Details { number, this_update, next_update, revoked } =
            details(&der).ok_or("is not a list that can be used: it cannot be read")?;
        Ok(Self { parsed: parsed.into(), number, this_update, next_update, revoked, der })
    }

    fn is_signed_by(&self, authority: &TrustAnchor<'_>) -> bool {
        let signed_by = || {
            let signed = der::signed(&self.der)?;
            let algorithm = der::tagged(&authority.subject_public_key_info, SEQUENCE)?;
            let key = der::bits(algorithm.rest)?;
            let of = |a: &&&'static dyn rustls::pki_types::SignatureVerificationAlgorithm| {
                a.public_key_alg_id().as_ref() == algorithm.content && a.signature_alg_id().as_ref() == signed.algorithm
            };
            let algorithms = crypto::algorithms();
            let verifier = algorithms.all.iter().find(of)?;
            verifier.verify_signature(key, signed.message, signed.signature).ok()
        };
        authority.subject.as_ref() == self.parsed.issuer() && signed_by().is_some()
    }
}

/// What is read of a list beside what webpki reads.
struct Details {
    number: Vec<u8>,
    this_update: UtcTime,
    next_update: UtcTime,
    revoked: u64,
}

fn details(list: &[u8]) -> Option<Details> {
    let signed = der::signed(list)?;
    let content = der::tagged(signed.message, SEQUENCE)?.content;
    // Version, algorithm, issuer.
    let mut fields = der::elements(content).skip(3);
    let mut time = || fields.next().and_then(|field| UtcTime::parse(field.tag, field.content));
    let (this_update, next_update) = (time()?, time()?);
    let (mut revoked, mut number) = (0, Vec::new());
    for field in fields {
        match field.tag {
            SEQUENCE => revoked = der::elements(field.content).count() as u64,
            0xa0 => {
                number = der::extension(field.content, NUMBER).and_then(der::number).unwrap_or_default().to_vec();
            }
            _ => {}
        }
    }
    Some(Details { number, this_update, next_update, revoked })
}
