//! Typed ids: a prefix and 24 letters or digits that sort by creation time. An unknown or malformed id is simply not found, never a decoding error.

use serde::{Deserialize, Serialize};
use std::fmt;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The text of an id: `prefix`, `01` (the format), then 22 base-62 digits of `value`, most significant first.
pub fn render(prefix: &str, value: u128) -> String {
    let mut digits = [b'0'; 22];
    let mut rest = value;
    for slot in digits.iter_mut().rev() {
        let digit = usize::try_from(rest % 62).expect("a remainder below 62 fits");
        *slot = ALPHABET[digit];
        rest /= 62;
    }
    let digits = std::str::from_utf8(&digits).expect("the alphabet is ASCII");
    format!("{prefix}01{digits}")
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind starts with.
            pub const PREFIX: &'static str = $prefix;

            /// A new id from a value that an [`IdGen`](crate::IdGen) gave.
            pub fn new(value: u128) -> Self {
                Self(render(Self::PREFIX, value))
            }

            /// The id as it stands in a path or a body; what is not an id of ours is found nowhere.
            pub fn from_wire(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The id's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    )*};
}

ids! {
    /// An agent.
    AgentId = "agent_";
    /// An API key (the record of it, never the key itself).
    ApiKeyId = "apikey_";
    /// A credential of a vault.
    CredentialId = "vcrd_";
    /// An environment.
    EnvironmentId = "env_";
    /// An event of a session's log.
    EventId = "sevt_";
    /// One HTTP request.
    RequestId = "req_";
    /// A session.
    SessionId = "sesn_";
    /// A thread of a session.
    ThreadId = "sthr_";
    /// A vault.
    VaultId = "vlt_";
    /// An item of a self-hosted environment's work queue.
    WorkId = "work_";
    /// A workspace: what an API key sees.
    WorkspaceId = "wrkspc_";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_length_and_sort_by_value() {
        let small = SessionId::new(7);
        let large = SessionId::new(u128::MAX);
        assert_eq!(small.as_str().len(), large.as_str().len());
        assert!(small < large);
        assert!(small.as_str().starts_with("sesn_01"));
    }
}
