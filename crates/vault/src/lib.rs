//! Seals secrets at rest with AES-256-GCM. What is sealed names the key it is sealed with and is bound to its place: copied to another row, it does not open. Nothing here is
//! ever shown: no value of this crate prints a secret or a key.

pub mod credentials;
pub mod headers;
pub mod secrets;
pub mod variables;

use aes_gcm::{
    Aes256Gcm, Key, Nonce,
    aead::{Aead, KeyInit, Payload},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};
use vaquero_types::id::hex;
use zeroize::Zeroizing;

/// Bytes of a key.
const KEY: usize = 32;
/// Bytes of a nonce.
const NONCE: usize = 12;

/// Why keys cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("there is no key")]
    None,
    /// It is no key.
    #[error("key {0} is not 32 bytes in base64; `openssl rand -base64 32` makes one")]
    Malformed(usize),
    /// The system gives no randomness.
    #[error("the system gives no random numbers")]
    Randomness,
}

/// Why something does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It was sealed with a key that is not here.
    #[error("it is sealed with a key that this server does not have")]
    UnknownKey,
    /// It is not what was sealed here, or not in this place.
    #[error("it is damaged, or was sealed for another place")]
    Damaged,
}

/// A sealed secret, as it may be stored anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The key's name.
    pub key: String,
    nonce: String,
    text: String,
}

/// One key and its name.
struct Named {
    name: String,
    cipher: Aes256Gcm,
}

/// Keys: the first one seals, each of them opens.
pub struct Keyring(Vec<Named>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.name)).finish()
    }
}

/// A new key, as text.
pub fn new_key() -> Result<Zeroizing<String>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY]);
    getrandom::fill(bytes.as_mut()).map_err(|_| KeyError::Randomness)?;
    Ok(Zeroizing::new(STANDARD.encode(bytes.as_ref())))
}

impl Keyring {
    /// Reads keys in base64, with commas or white space between several.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        let separators = |c: char| c == ',' || c.is_whitespace();
        for (number, text) in text.split(separators).filter(|text| !text.is_empty()).enumerate() {
            let bytes = Zeroizing::new(STANDARD.decode(text).unwrap_or_default());
            if bytes.len() != KEY {
                return Err(KeyError::Malformed(number + 1));
            }
            let digest = Sha256::digest([b"vaquero vault key\0".as_slice(), &bytes].concat());
            let name = hex(&digest[..6]);
            let cipher = Aes256Gcm::new(Key::<Aes256Gcm>::from_slice(&bytes));
            keys.push(Named { name, cipher });
        }
        if keys.is_empty() { Err(KeyError::None) } else { Ok(Self(keys)) }
    }

    /// The name of the key that seals.
    pub fn current(&self) -> &str {
        self.0.first().map_or("", |key| &key.name)
    }

    /// Seals a secret for its place.
    pub fn seal(&self, place: &str, secret: &[u8]) -> Result<Sealed, KeyError> {
        let key = self.0.first().ok_or(KeyError::None)?;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| KeyError::Randomness)?;
        let payload = Payload { msg: secret, aad: place.as_bytes() };
        // It fails only beyond 64 GiB.
        let text = key.cipher.encrypt(Nonce::from_slice(&nonce), payload);
        let text = text.map_err(|_| KeyError::Randomness)?;
        Ok(Sealed {
            key: key.name.clone(),
            nonce: STANDARD.encode(nonce),
            text: STANDARD.encode(text),
        })
    }

    /// Opens what was sealed for this place.
    pub fn open(&self, place: &str, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let key = self.0.iter().find(|key| key.name == sealed.key).ok_or(OpenError::UnknownKey)?;
        let nonce = STANDARD.decode(&sealed.nonce).map_err(|_| OpenError::Damaged)?;
        let text = STANDARD.decode(&sealed.text).map_err(|_| OpenError::Damaged)?;
        if nonce.len() != NONCE {
            return Err(OpenError::Damaged);
        }
        let payload = Payload { msg: &text, aad: place.as_bytes() };
        let opened = key.cipher.decrypt(Nonce::from_slice(&nonce), payload);
        opened.map(Zeroizing::new).map_err(|_| OpenError::Damaged)
    }
}

/// The keys a server seals with, which can be replaced while it runs; or why there are none.
#[derive(Debug)]
pub struct Keys(RwLock<Result<Arc<Keyring>, String>>);

impl Keys {
    /// These keys, or why there are none.
    pub fn new(keys: Result<Keyring, String>) -> Self {
        Self(RwLock::new(keys.map(Arc::new)))
    }

    /// The keys as they are now.
    pub fn get(&self) -> Result<Arc<Keyring>, String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts others in their place.
    pub fn replace(&self, keys: Keyring) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Ok(Arc::new(keys));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> Vec<String> {
        (0..count).map(|_| new_key().expect("randomness").to_string()).collect()
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_alone() {
        let ring = Keyring::parse(&keys(1)[0]).expect("a key");
        let sealed = ring.seal("a", b"secret").expect("sealed");
        assert_eq!(ring.open("a", &sealed).expect("its place").as_slice(), b"secret");
        assert_eq!(ring.open("b", &sealed), Err(OpenError::Damaged));
        let again = ring.seal("a", b"secret").expect("sealed");
        assert_ne!(again.text, sealed.text, "the same secret never looks the same");
        for (nonce, text) in
            [("", sealed.text.as_str()), (&sealed.nonce, ""), (&sealed.nonce, "AAAA"), ("!", "!")]
        {
            let bent = Sealed { nonce: nonce.to_owned(), text: text.to_owned(), ..sealed.clone() };
            assert_eq!(ring.open("a", &bent), Err(OpenError::Damaged), "{bent:?}");
        }
    }

    #[test]
    fn old_keys_open_and_the_first_seals() {
        let keys = keys(2);
        let old = Keyring::parse(&keys[0]).expect("a key");
        let both = Keyring::parse(&format!("{},\n{}", keys[1], keys[0])).expect("two keys");
        let new = Keyring::parse(&keys[1]).expect("a key");
        let sealed = old.seal("a", b"s").expect("sealed");
        assert!(both.open("a", &sealed).is_ok());
        assert_eq!(new.open("a", &sealed), Err(OpenError::UnknownKey));
        let sealed = both.seal("a", b"s").expect("sealed");
        assert_eq!(sealed.key, new.current());
        assert!(new.open("a", &sealed).is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused_and_keys_are_not_shown() {
        assert_eq!(Keyring::parse(" ,\n").err(), Some(KeyError::None));
        assert_eq!(Keyring::parse("c2hvcnQ=").err(), Some(KeyError::Malformed(1)));
        let key = &keys(1)[0];
        assert_eq!(Keyring::parse(&format!("{key},x")).err(), Some(KeyError::Malformed(2)));
        let ring = Keyring::parse(key).expect("a key");
        let shown = format!("{ring:?} {:?}", ring.seal("p", b"the secret").expect("sealed"));
        assert!(!shown.contains(key.as_str()) && !shown.contains("the secret"));
    }
}
