//! A certificate authority of one sandbox's own. Nobody else trusts it, and its key is never in the sandbox: it opens TLS of that sandbox alone, and only towards hosts that a
//! secret is for.

use crate::outlet::{HTTP_1, HTTP_2};
use lru::LruCache;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;
use vaquero_types::{Clock, Timestamp};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long an authority's certificate lasts: longer than any sandbox.
const LIFE: Duration = Duration::from_secs(400 * 24 * 3600);
/// How long a host's certificate lasts, and after how long another one is made.
const LEAF: Duration = Duration::from_secs(7 * 24 * 3600);
/// Hosts whose certificates are kept.
const LEAVES: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// No certificate could be made.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// What was kept is not what was given to be kept.
    #[error("what was kept of an authority cannot be read")]
    Kept,
}

/// An authority, as text to be kept outside of the sandbox.
#[derive(Serialize, Deserialize)]
struct Kept {
    certificate: String,
    key: String,
}

/// A certificate authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    /// All leaves have one key: making it costs more than signing.
    leaf_key: KeyPair,
    leaves: Mutex<LruCache<String, (Timestamp, Arc<CertifiedKey>)>>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

fn instant(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_micros() / 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn params(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Vaquero egress of this sandbox");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Clocks inside may be a little behind.
    params.not_before = instant(now.minus(DAY));
    params.not_after = instant(now.plus(LIFE));
    params
}

impl Authority {
    /// A new authority.
    pub fn new(clock: Arc<dyn Clock>) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let params = params(clock.now());
        let certificate = params.self_signed(&key)?.pem();
        Self::with(certificate, Issuer::new(params, key), clock)
    }

    /// The authority that was kept as this text.
    pub fn from_kept(text: &str, clock: Arc<dyn Clock>) -> Result<Self, AuthorityError> {
        let kept: Kept = serde_json::from_str(text).map_err(|_| AuthorityError::Kept)?;
        let key = KeyPair::from_pem(&kept.key)?;
        // An issuer is its name and its key; the dates do not matter.
        let issuer = Issuer::new(params(clock.now()), key);
        Self::with(kept.certificate, issuer, clock)
    }

    fn with(
        certificate: String,
        issuer: Issuer<'static, KeyPair>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        let leaf_key = KeyPair::generate()?;
        let leaves = Mutex::new(LruCache::new(LEAVES));
        Ok(Self { certificate, issuer, leaf_key, leaves, clock })
    }

    /// Text from which [`Authority::from_kept`] makes the same one. It is a secret.
    pub fn kept(&self) -> String {
        let key = self.issuer.key().serialize_pem();
        let kept = Kept { certificate: self.certificate.clone(), key };
        serde_json::to_string(&kept).unwrap_or_default()
    }

    /// The certificate that the sandbox must trust, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// How to be any host towards the sandbox.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
        Ok(Arc::new(config))
    }

    fn leaf(&self, name: &str) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let now = self.clock.now();
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, leaf)) = leaves.get(name)
            && now.since(*made) < LEAF / 2
        {
            return Ok(Arc::clone(leaf));
        }
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = instant(now.minus(DAY));
        params.not_after = instant(now.plus(LEAF));
        let certificate = params.signed_by(&self.leaf_key, &self.issuer)?;
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let key = ring::sign::any_supported_type(&key).map_err(|_| AuthorityError::Kept)?;
        let leaf = Arc::new(CertifiedKey::new(chain, key));
        leaves.put(name.to_owned(), (now, Arc::clone(&leaf)));
        Ok(leaf)
    }
}

impl ResolvesServerCert for Authority {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.leaf(&hello.server_name()?.to_ascii_lowercase()) {
            Ok(leaf) => Some(leaf),
            Err(error) => {
                tracing::error!(%error, "no certificate for a host");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vaquero_types::SystemClock;

    #[test]
    fn an_authority_is_kept_and_made_again() {
        let one = Authority::new(Arc::new(SystemClock)).expect("an authority");
        let again = Authority::from_kept(&one.kept(), Arc::new(SystemClock)).expect("the same");
        assert_eq!((one.certificate(), one.kept()), (again.certificate(), again.kept()));
        assert!(!format!("{one:?}").contains("PRIVATE"));
        assert!(Authority::from_kept("{}", Arc::new(SystemClock)).is_err());
        let leaf = again.leaf("a.example").expect("a leaf");
        assert!(Arc::ptr_eq(&leaf, &again.leaf("a.example").expect("the same leaf")));
    }
}
