//! Vaults: where credentials are kept for the sessions that name them.

mod headers;

pub use headers::HttpHeaders;

use crate::{Fields, Invalid, Timestamp, VaultId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A vault, as stored and as shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vault {
    /// Always `vault`.
    #[serde(rename = "type")]
    pub kind: VaultKind,
    /// Its id.
    pub id: VaultId,
    /// 1 to 255 characters.
    pub display_name: String,
    /// At most 16 pairs.
    pub metadata: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

/// The constant `vault`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VaultKind {
    /// The constant.
    #[default]
    Vault,
}

/// A create or update request, decoded and resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct VaultDraft {
    /// The name.
    pub display_name: String,
    /// The metadata.
    pub metadata: BTreeMap<String, String>,
}

impl VaultDraft {
    /// Decodes the body of `POST /v1/vaults`.
    pub fn decode(mut body: Fields) -> Result<Self, Invalid> {
        let draft = Self {
            display_name: body.required_text("display_name", 1, 255)?,
            metadata: body.metadata("metadata")?,
        };
        body.finish()?;
        HttpHeaders::of(&draft.metadata)?;
        Ok(draft)
    }

    /// Decodes the body of `POST /v1/vaults/{vault_id}` against the stored vault.
    pub fn decode_update(mut body: Fields, stored: &Vault) -> Result<Self, Invalid> {
        let name = body.text("display_name", 1, 255)?;
        let draft = Self {
            display_name: name.unwrap_or_else(|| stored.display_name.clone()),
            metadata: body.patch_metadata("metadata", &stored.metadata, false)?,
        };
        body.finish()?;
        HttpHeaders::of(&draft.metadata)?;
        Ok(draft)
    }
}
