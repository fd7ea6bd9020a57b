//! As much of DER (X.690) as is needed to read certificates and revocation lists (RFC 5280, sections 4.1 and 5.1). What cannot be
//! read is `None`, never a panic.

/// One element of a DER encoding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// With its tag and length.
    pub(crate) whole: &'a [u8],
    /// What follows it.
    pub(crate) rest: &'a [u8],
}

/// SEQUENCE.
pub(crate) const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// The first element of an encoding.
pub(crate) fn element(der: &[u8]) -> Option<Element<'_>> {
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
    Some(Element { tag, content, whole: &der[..der.len() - rest.len()], rest })
}

/// The first element, which must have this tag.
pub(crate) fn tagged(der: &[u8], tag: u8) -> Option<Element<'_>> {
    element(der).filter(|e| e.tag == tag)
}

/// What an authority has signed, with what, and the signature: the three parts of a certificate and of a revocation list.
pub(crate) struct Signed<'a> {
    /// The bytes that are signed, an element.
    pub(crate) message: &'a [u8],
    /// The content of the algorithm's identifier.
    pub(crate) algorithm: &'a [u8],
    pub(crate) signature: &'a [u8],
}

/// The parts of a certificate or a revocation list.
pub(crate) fn signed(der: &[u8]) -> Option<Signed<'_>> {
    let outer = tagged(der, SEQUENCE)?;
    let message = tagged(outer.content, SEQUENCE)?;
    let algorithm = tagged(message.rest, SEQUENCE)?;
    let signature = bits(algorithm.rest)?;
    Some(Signed { message: message.whole, algorithm: algorithm.content, signature })
}

/// The content of a BIT STRING of whole bytes.
pub(crate) fn bits(der: &[u8]) -> Option<&[u8]> {
    tagged(der, BIT_STRING)?.content.strip_prefix(&[0])
}

/// The elements of a content, one after the other; they end where one cannot be read.
pub(crate) fn elements(mut content: &[u8]) -> impl Iterator<Item = Element<'_>> {
    std::iter::from_fn(move || {
        let next = element(content)?;
        content = next.rest;
        Some(next)
    })
}

/// The value of an extension: `extensions` is the content of the list of all, `id` the content of the object identifier.
pub(crate) fn extension<'a>(extensions: &'a [u8], id: &[u8]) -> Option<&'a [u8]> {
    let list = tagged(extensions, SEQUENCE)?;
    elements(list.content).find_map(|extension| {
        let name = tagged(extension.content, OBJECT_IDENTIFIER)?;
        // Whether it is critical may stand between.
        let value = elements(name.rest).find(|e| e.tag == OCTET_STRING)?;
        (name.content == id).then_some(value.content)
    })
}

/// The bytes of a number that is not negative, the highest first, without leading zeros.
pub(crate) fn number(der: &[u8]) -> Option<&[u8]> {
    let content = tagged(der, INTEGER)?.content;
    let zeros = content.iter().take_while(|b| **b == 0).count();
    Some(&content[zeros..])
}

/// The bytes of an OCTET STRING.
pub(crate) fn octets(der: &[u8]) -> Option<&[u8]> {
    tagged(der, OCTET_STRING).map(|e| e.content)
}
