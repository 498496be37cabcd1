//! How far the server's certificate is checked.

use super::Mode;
use crate::OpenError;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use std::sync::Arc;
use tokio_postgres::{Config, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A connector for `mode`; tells the driver whether TLS may, must or must not be.
pub(super) fn connector(
    mode: Mode,
    roots: Option<&str>,
    config: &mut Config,
) -> Result<MakeRustlsConnect, OpenError> {
    config.ssl_mode(match mode {
        Mode::Disable => SslMode::Disable,
        Mode::Prefer => SslMode::Prefer,
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
    });
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| OpenError::Certificates(error.to_string()))?;
    let checks = match mode {
        Mode::Disable | Mode::Prefer | Mode::Require => Checks::Nothing(provider),
        Mode::VerifyCa => Checks::Chain(verifier(roots, provider)?),
        Mode::VerifyFull => Checks::All(verifier(roots, provider)?),
    };
    let config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(checks))
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn verifier(
    roots: Option<&str>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, OpenError> {
    let mut store = RootCertStore::empty();
    match roots {
        Some(path) if path != "system" => {
            let failed = |what: String| {
                OpenError::Certificates(format!("sslrootcert {path} cannot be read: {what}"))
            };
            let found = CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))?;
            for certificate in found {
                let certificate = certificate.map_err(|e| failed(e.to_string()))?;
                store.add(certificate).map_err(|e| failed(e.to_string()))?;
            }
            if store.is_empty() {
                return Err(failed("it holds no certificate".to_owned()));
            }
        }
        _ => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                let message = "this machine has no root certificates; name some with sslrootcert";
                return Err(OpenError::Certificates(message.to_owned()));
            }
        }
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
        .build()
        .map_err(|error| OpenError::Certificates(error.to_string()))
}

/// What is checked, as libpq's modes have it.
#[derive(Debug)]
enum Checks {
    /// `prefer` and `require`: against listeners, not against whoever can answer in the server's place.
    Nothing(Arc<CryptoProvider>),
    /// `verify-ca`: that a known root signed it.
    Chain(Arc<WebPkiServerVerifier>),
    /// `verify-full`: its name as well.
    All(Arc<WebPkiServerVerifier>),
}

impl ServerCertVerifier for Checks {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (Self::Chain(verifier) | Self::All(verifier)) = self else {
            return Ok(ServerCertVerified::assertion());
        };
        let checked =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        match (self, checked) {
            (
                Self::Chain(_),
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                )),
            ) => Ok(ServerCertVerified::assertion()),
            (_, checked) => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self {
            Self::Nothing(provider) => rustls::crypto::verify_tls12_signature(
                message,
                cert,
                signed,
                &provider.signature_verification_algorithms,
            ),
            Self::Chain(verifier) | Self::All(verifier) => {
                verifier.verify_tls12_signature(message, cert, signed)
            }
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self {
            Self::Nothing(provider) => rustls::crypto::verify_tls13_signature(
                message,
                cert,
                signed,
                &provider.signature_verification_algorithms,
            ),
            Self::Chain(verifier) | Self::All(verifier) => {
                verifier.verify_tls13_signature(message, cert, signed)
            }
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        match self {
            Self::Nothing(provider) => {
                provider.signature_verification_algorithms.supported_schemes()
            }
            Self::Chain(verifier) | Self::All(verifier) => verifier.supported_verify_schemes(),
        }
    }
}
