//! Certificates as Java keeps them. Java reads no PEM files, and its own tool for making stores of certificates is not everywhere.
//!
//! The format is the one called JKS, of certificates alone: a head, then for each certificate its name, a date, its kind and itself, then a SHA-1 of all that after a password.
//! Numbers are big-endian, texts have two bytes of length.

use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha1::{Digest, Sha1};

const MAGIC: u32 = 0xFEED_FEED;
const VERSION: u32 = 2;
const TRUSTED: u32 = 2;
const KIND: &str = "X.509";
/// The password that everybody's store of public certificates has.
const PASSWORD: &str = "changeit";
/// What goes between the password and the store.
const SALT: &str = "Mighty Aphrodite";

/// A store of all certificates in a PEM file; what is no certificate is left out. `millis` since 1970 is when they are said to have come.
pub(crate) fn java(pem: &[u8], millis: u64) -> Vec<u8> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).flatten().collect();
    let mut store = Vec::with_capacity(pem.len());
    let count = u32::try_from(certificates.len()).unwrap_or(u32::MAX);
    for number in [MAGIC, VERSION, count] {
        store.extend(number.to_be_bytes());
    }
    for (number, certificate) in certificates.iter().enumerate() {
        store.extend(TRUSTED.to_be_bytes());
        text(&mut store, &format!("certificate-{number}"));
        store.extend(millis.to_be_bytes());
        text(&mut store, KIND);
        store.extend(u32::try_from(certificate.len()).unwrap_or(u32::MAX).to_be_bytes());
        store.extend_from_slice(certificate);
    }
    let password = PASSWORD.encode_utf16().flat_map(u16::to_be_bytes);
    let digest = Sha1::new()
        .chain_update(password.collect::<Vec<u8>>())
        .chain_update(SALT)
        .chain_update(&store);
    store.extend(digest.finalize());
    store
}

fn text(store: &mut Vec<u8>, text: &str) {
    store.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    store.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_javas_own_tool_makes() {
        let pem = include_bytes!("../../tests/fixtures/truststore.pem");
        let expected = include_bytes!("../../tests/fixtures/truststore.jks");
        // After the head, the tag and the name comes the date.
        let at = 12 + 4 + 2 + "certificate-0".len();
        let date = expected[at..at + 8].try_into().expect("eight bytes");
        assert_eq!(java(pem, u64::from_be_bytes(date)), expected);
    }

    #[test]
    fn what_is_no_certificate_is_left_out() {
        let store = java(b"-----BEGIN NOTHING-----\nAAAA\n-----END NOTHING-----\nand text", 0);
        assert_eq!(&store[..12], [0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2, 0, 0, 0, 0]);
        assert_eq!(store.len(), 12 + 20);
    }
}
