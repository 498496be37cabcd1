//! Page cursors: opaque to clients, bound to their list, refused when misused.

use crate::reject::{Reject, Result};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use vaquero_store::Order;
use vaquero_types::{ApiError, Timestamp};

/// A position in a list by creation time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Microseconds.
    pub(crate) at: i64,
    pub(crate) id: String,
    pub(crate) descending: bool,
    /// The page before the position rather than the one after it.
    #[serde(default)]
    pub(crate) back: bool,
}

impl Place {
    pub(crate) fn key(&self) -> (Timestamp, String) {
        (Timestamp::from_micros(self.at), self.id.clone())
    }
}

fn checksum(list: &str, body: &[u8]) -> [u8; 6] {
    let digest = Sha256::new().chain_update(list).chain_update([0]).chain_update(body).finalize();
    let mut sum = [0; 6];
    sum.copy_from_slice(&digest[..6]);
    sum
}

/// A cursor of `list` (its path, so that one list's cursor is no other's).
pub(crate) fn encode(list: &str, position: &impl Serialize) -> String {
    let mut body = serde_json::to_vec(position).expect("a position is plain data");
    let sum = checksum(list, &body);
    body.extend_from_slice(&sum);
    URL_SAFE_NO_PAD.encode(body)
}

fn invalid() -> Reject {
    ApiError::invalid("page: invalid page cursor").into()
}

/// Reads a cursor of `list`.
pub(crate) fn decode<T: DeserializeOwned>(list: &str, text: &str) -> Result<T> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
    let split = bytes.len().checked_sub(6).ok_or_else(invalid)?;
    let (body, sum) = bytes.split_at(split);
    if checksum(list, body) != sum {
        return Err(invalid());
    }
    serde_json::from_slice(body).map_err(|_| invalid())
}

/// Refuses a cursor that was made in the other direction.
pub(crate) fn same_order(descending: bool, order: Order) -> Result<()> {
    if descending == (order == Order::Descending) {
        return Ok(());
    }
    Err(ApiError::invalid("page: page token order does not match request").into())
}
