//! Why a connection was not made, in words for whoever reads them inside the sandbox.

use crate::Host;

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The policy does not name it.
    #[error("the host `{0}` is not among the allowed_hosts of this environment")]
    NotAllowed(Host),
    /// It is an address nobody may dial from here.
    #[error(
        "`{0}` is a private or reserved address; the server's operator can allow its range with --egress-allow-private"
    )]
    Private(Host),
    /// Clouds tell machines their credentials there.
    #[error("`{0}` is a metadata address, which no sandbox may reach")]
    Metadata(Host),
    /// It has no address.
    #[error("the name `{0}` has no address")]
    NoAddress(Host),
    /// It does not answer.
    #[error("`{0}` cannot be reached: {1}")]
    Unreachable(Host, String),
    /// The connection says it is for another host than the one it goes to.
    #[error(
        "the connection to `{wanted}` is for {said}: a connection must name the host it goes to"
    )]
    Mismatch {
        /// Where it goes.
        wanted: Host,
        /// What it says.
        said: String,
    },
    /// A secret that its requests are to have cannot be had.
    #[error(
        "the credential for `{0}` cannot be had at the moment, and nothing is sent there without it"
    )]
    NoSecret(Host),
    /// It is signed with what stands for a secret.
    #[error(
        "the request to `{0}` is signed with a placeholder: the secret that it stands for is put in here, after signing, so that no host could check the signature; use a credential that is sent as it is, such as a token"
    )]
    Signed(Host),
    /// It cannot be understood.
    #[error("{0}")]
    Malformed(&'static str),
    /// There are too many already.
    #[error("this sandbox has too many connections open")]
    TooMany,
}

impl Refusal {
    /// A word for counting.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAllowed(_) => "not_allowed",
            Self::Private(_) => "private_address",
            Self::Metadata(_) => "metadata_address",
            Self::NoAddress(_) => "no_address",
            Self::Unreachable(..) => "unreachable",
            Self::Mismatch { .. } => "mismatch",
            Self::NoSecret(_) => "no_secret",
            Self::Signed(_) => "signed",
            Self::Malformed(_) => "malformed",
            Self::TooMany => "too_many",
        }
    }

    /// The status of an HTTP answer that says so.
    pub(crate) fn status(&self) -> http::StatusCode {
        match self {
            Self::NotAllowed(_)
            | Self::Private(_)
            | Self::Metadata(_)
            | Self::Mismatch { .. }
            | Self::Signed(_) => http::StatusCode::FORBIDDEN,
            Self::NoAddress(_) | Self::Unreachable(..) | Self::NoSecret(_) => {
                http::StatusCode::BAD_GATEWAY
            }
            Self::Malformed(_) => http::StatusCode::BAD_REQUEST,
            Self::TooMany => http::StatusCode::TOO_MANY_REQUESTS,
        }
    }
}
