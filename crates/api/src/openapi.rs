//! The API's OpenAPI document, as committed.

/// The document served at `/openapi.json`.
pub const DOCUMENT: &str = include_str!("../../../openapi/openapi.json");
