//! Requests that are signed: with a placeholder in the place of a secret, no signature can be right.

use http::{HeaderName, header, request::Parts};

/// The header or the query in which a request says that it is signed.
pub(crate) fn signature(head: &Parts) -> Option<String> {
    const SCHEMES: [&str; 9] =
        ["aws4-", "aws ", "goog4-", "signature ", "sharedkey", "tc3-", "acs3-", "oss", "hmac"];
    const QUERIES: [&str; 3] = ["x-amz-signature=", "x-goog-signature=", "&sig="];
    let text = |name: HeaderName| {
        head.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    if let Some(value) = text(HeaderName::from_static("signature-input")) {
        return Some(value);
    }
    if let Some(value) = text(header::AUTHORIZATION) {
        let scheme = value.to_ascii_lowercase();
        if SCHEMES.iter().any(|known| scheme.starts_with(known)) {
            return Some(value);
        }
    }
    let query = head.uri.query().unwrap_or_default();
    let lower = format!("&{}", query.to_ascii_lowercase());
    QUERIES.iter().any(|known| lower.contains(known)).then(|| query.to_owned())
}
