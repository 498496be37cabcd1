//! Vaults whose one credential goes into headers: their metadata says into which, and on requests to which hosts. The keys are those of Sandbox0's managed agents, and the same
//! under a prefix of our own.

use crate::{Invalid, environment::check_host};
use http::{HeaderName, HeaderValue};
use std::collections::BTreeMap;
use url::Url;

/// What such keys begin with.
const PREFIXES: [&str; 2] = ["vaquero.managed_agents.", "sandbox0.managed_agents."];
const KEYS: [&str; 10] = [
    "role",
    "kind",
    "version",
    "target_domains",
    "protocol",
    "tls_mode",
    "failure_policy",
    "headers_json",
    "engine",
    "llm_base_url",
];
/// Most hosts.
const HOSTS: usize = 16;
/// Headers that say where a request goes and how long it is.
const FRAMING: [&str; 8] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "accept-encoding",
];

/// How a vault's credential goes into headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpHeaders {
    /// To which hosts.
    pub hosts: Vec<String>,
    /// Over TLS; else in plain.
    pub tls: bool,
    /// Requests are not made without it.
    pub required: bool,
    /// Names and templates.
    headers: BTreeMap<String, String>,
}

impl HttpHeaders {
    /// As a vault's metadata says; none if it says nothing of it.
    pub fn of(metadata: &BTreeMap<String, String>) -> Result<Option<Self>, Invalid> {
        let reserved = |prefix: &str| metadata.keys().any(|key| key.starts_with(prefix));
        let mut used = PREFIXES.into_iter().filter(|prefix| reserved(prefix));
        let Some(prefix) = used.next() else { return Ok(None) };
        if used.next().is_some() {
            let both = PREFIXES.join("` and `");
            return Err(Invalid::new(
                "metadata",
                format!("use keys of one of `{both}`, not of both"),
            ));
        }
        let at = |name: &str| format!("metadata.{prefix}{name}");
        let invalid = |name: &str, reason: &str| Err(Invalid::new(at(name), reason));
        for key in metadata.keys() {
            if let Some(name) = key.strip_prefix(prefix)
                && !KEYS.contains(&name)
            {
                let reason = format!("unknown key; known under `{prefix}` are {}", KEYS.join(", "));
                return Err(Invalid::new(format!("metadata.{key}"), reason));
            }
        }
        let get = |name: &str| metadata.get(&format!("{prefix}{name}")).map(|value| value.trim());
        // Some write `fail_closed`.
        let word = |name: &str| get(name).map(|value| value.to_ascii_lowercase().replace('_', "-"));
        match get("role") {
            Some("credential") => {}
            Some("llm") => {
                return invalid(
                    "role",
                    "vaults do not choose models here: the agent's `model` does, and this server's operator says where models are",
                );
            }
            _ => return invalid("role", "expected `credential`"),
        }
        for name in ["engine", "llm_base_url"] {
            if get(name).is_some() {
                return invalid(name, "a vault of role `credential` has none");
            }
        }
        if get("kind") != Some("http_headers") {
            return invalid("kind", "expected `http_headers`");
        }
        if !matches!(get("version"), None | Some("" | "1")) {
            return invalid("version", "expected `1`");
        }
        let tls = match word("protocol").as_deref() {
            None | Some("" | "https") => true,
            Some("http") => false,
            Some(_) => return invalid("protocol", "expected `https` or `http`"),
        };
        match word("tls_mode").as_deref() {
            None | Some("" | "terminate-reoriginate") => {}
            Some("passthrough") if !tls => {}
            Some("passthrough") => {
                return invalid("tls_mode", "headers cannot be put into TLS that passes unopened");
            }
            Some(_) => {
                return invalid("tls_mode", "expected `terminate-reoriginate` or `passthrough`");
            }
        }
        let required = match word("failure_policy").as_deref() {
            None | Some("" | "fail-closed") => true,
            Some("fail-open") => false,
            Some(_) => return invalid("failure_policy", "expected `fail-closed` or `fail-open`"),
        };
        let hosts = hosts(get("target_domains").unwrap_or_default(), &at("target_domains"))?;
        let headers = headers(get("headers_json").unwrap_or_default(), &at("headers_json"))?;
        Ok(Some(Self { hosts, tls, required, headers }))
    }

    /// The headers with a token in them; none if the token cannot be in a header.
    pub fn render(&self, token: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
        let render = |(name, template): (&String, &String)| {
            let mut value = HeaderValue::try_from(fill(template, token).ok()?).ok()?;
            value.set_sensitive(true);
            Some((name.parse().ok()?, value))
        };
        self.headers.iter().map(render).collect()
    }
}

fn hosts(text: &str, at: &str) -> Result<Vec<String>, Invalid> {
    let mut hosts = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let url = Url::parse(part).ok().filter(|_| part.contains("://"));
        let host = url.as_ref().and_then(Url::host_str).unwrap_or(part).to_ascii_lowercase();
        check_host(&host, at)?;
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    if hosts.is_empty() || hosts.len() > HOSTS {
        let reason = format!("expected 1 to {HOSTS} hosts, with commas between them");
        return Err(Invalid::new(at, reason));
    }
    Ok(hosts)
}

fn headers(text: &str, at: &str) -> Result<BTreeMap<String, String>, Invalid> {
    let expected = || {
        let example = r#"{"authorization": "{{ .authorization }}"}"#;
        Invalid::new(at, format!("expected a JSON object of header names and templates: {example}"))
    };
    let headers: BTreeMap<String, String> = serde_json::from_str(text).map_err(|_| expected())?;
    if headers.is_empty() {
        return Err(expected());
    }
    for (name, template) in &headers {
        let parsed: HeaderName = name
            .parse()
            .map_err(|_| Invalid::new(at, format!("`{name}` is not the name of a header")))?;
        if FRAMING.contains(&parsed.as_str()) {
            return Err(Invalid::new(at, format!("the header `{name}` cannot be set")));
        }
        let value = fill(template, "token").map_err(|reason| Invalid::new(at, reason))?;
        if HeaderValue::try_from(value).is_err() {
            return Err(Invalid::new(at, format!("the value of `{name}` cannot be in a header")));
        }
    }
    Ok(headers)
}

/// A template with what stands for a token in it filled in.
fn fill(template: &str, token: &str) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) =
            after.split_once("}}").ok_or_else(|| format!("`{template}` lacks a `}}}}`"))?;
        filled.push_str(before);
        match name.trim() {
            ".token" => filled.push_str(token),
            ".authorization" => filled.push_str(&format!("Bearer {token}")),
            other => {
                return Err(format!(
                    "`{{{{ {other} }}}}` stands for nothing; there are `{{{{ .token }}}}`, and `{{{{ .authorization }}}}` for the token after `Bearer `"
                ));
            }
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(changes: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut all = BTreeMap::from([
            ("role", "credential"),
            ("kind", "http_headers"),
            ("target_domains", "https://App.Example.com/api, app.example.com,*.example.org"),
            ("headers_json", r#"{"X-Key":"{{ .token }}","authorization":"{{.authorization}}"}"#),
        ]);
        all.extend(changes.iter().copied());
        all.retain(|_, value| *value != "-");
        let keyed = all
            .into_iter()
            .map(|(key, value)| (format!("sandbox0.managed_agents.{key}"), value.to_owned()));
        keyed.collect()
    }

    #[test]
    fn metadata_says_which_headers_and_hosts() {
        let of = |metadata: &BTreeMap<String, String>| HttpHeaders::of(metadata).expect("valid");
        let all = of(&metadata(&[])).expect("some");
        assert_eq!(all.hosts, ["app.example.com", "*.example.org"]);
        assert!(all.tls && all.required);
        let rendered = all.render("t0ken").expect("a token");
        let shown: Vec<_> = rendered.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
        assert_eq!(shown, [("x-key", &b"t0ken"[..]), ("authorization", b"Bearer t0ken")]);
        assert!(!format!("{rendered:?}").contains("t0ken"));
        assert_eq!(all.render("two\nlines"), None);
        let open = of(&metadata(&[("failure_policy", "fail_open"), ("protocol", "http")]));
        assert!(open.is_some_and(|open| !open.tls && !open.required));
        let ours = metadata(&[])
            .into_iter()
            .map(|(key, value)| (key.replace("sandbox0", "vaquero"), value))
            .collect();
        assert_eq!(of(&ours), Some(all));
        assert_eq!(of(&BTreeMap::from([("team".to_owned(), "a".to_owned())])), None);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (change, expected) in [
            (("role", "-"), "role: expected `credential`"),
            (("role", "llm"), "vaults do not choose models here"),
            (("kind", "oauth"), "expected `http_headers`"),
            (("engine", "claude"), "has none"),
            (("provider", "x"), "unknown key"),
            (("version", "2"), "expected `1`"),
            (("target_domains", " , "), "expected 1 to 16 hosts"),
            (("target_domains", "a b"), "expected a host"),
            (("protocol", "ftp"), "expected `https`"),
            (("tls_mode", "passthrough"), "passes unopened"),
            (("failure_policy", "never"), "expected `fail-closed`"),
            (("headers_json", "-"), "expected a JSON object"),
            (("headers_json", "{}"), "expected a JSON object"),
            (("headers_json", r#"{"a b":"x"}"#), "is not the name of a header"),
            (("headers_json", r#"{"Host":"x"}"#), "cannot be set"),
            (("headers_json", r#"{"a":"{{ .secret }}"}"#), "stands for nothing"),
            (("headers_json", r#"{"a":"{{ .token"}"#), "lacks a"),
            (("headers_json", "{\"a\":\"x\\ny\"}"), "cannot be in a header"),
        ] {
            let error = HttpHeaders::of(&metadata(&[change])).expect_err("invalid").to_string();
            assert!(error.contains(expected), "{change:?}: {error}");
        }
        let mut both = metadata(&[]);
        both.insert("vaquero.managed_agents.role".to_owned(), "credential".to_owned());
        assert!(HttpHeaders::of(&both).is_err());
    }
}
