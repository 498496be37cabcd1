//! Credentials: what they are for is stored and shown; what is secret about them is taken in here, kept apart, and never part of any of these types but [`Secrets`].

use crate::{CredentialId, Fields, Invalid, Patch, Timestamp, VaultId, fields};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};
use url::Url;

/// Longest secret, in characters.
const SECRET: usize = 65_536;
/// Most hosts of a credential.
const HOSTS: usize = 16;

/// A credential, as stored and as shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Credential {
    /// Always `vault_credential`.
    #[serde(rename = "type")]
    pub kind: CredentialKind,
    /// Its id.
    pub id: CredentialId,
    /// The vault it is in.
    pub vault_id: VaultId,
    /// At most 255 characters.
    pub display_name: Option<String>,
    /// At most 16 pairs.
    pub metadata: BTreeMap<String, String>,
    /// What it is for.
    pub auth: Auth,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

/// The constant `vault_credential`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// The constant.
    #[default]
    VaultCredential,
}

/// What a credential is for, without its secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Auth {
    /// An OAuth token for an MCP server.
    McpOauth {
        /// The server.
        mcp_server_url: String,
        /// When the token ends, if that is known.
        expires_at: Option<Timestamp>,
        /// How to get another one.
        refresh: Option<Refresh>,
    },
    /// A token that stays the same, for an MCP server or for headers.
    StaticBearer {
        /// The server; empty in a vault whose credential goes into headers.
        mcp_server_url: String,
    },
    /// A variable in the sandbox that stands for a secret.
    EnvironmentVariable {
        /// The variable's name.
        secret_name: String,
        /// On requests to which hosts the secret takes the variable's place.
        networking: CredentialNetworking,
        /// Where in a request.
        injection_location: InjectionLocation,
    },
}

/// How to get another access token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refresh {
    /// Who asks.
    pub client_id: String,
    /// Where to ask.
    pub token_endpoint: String,
    /// How to say who asks.
    pub token_endpoint_auth: TokenEndpointAuth,
    /// For which scope.
    pub scope: Option<String>,
    /// For which resource.
    pub resource: Option<String>,
}

/// How a client says who it is to a token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TokenEndpointAuth {
    /// Not at all.
    None,
    /// With HTTP Basic.
    ClientSecretBasic,
    /// In the body.
    ClientSecretPost,
}

/// To which hosts a secret may go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CredentialNetworking {
    /// To all that the environment allows.
    Unrestricted,
    /// To these.
    Limited {
        /// Hosts, IPv4 addresses, or `*.` and a domain.
        allowed_hosts: Vec<String>,
    },
}

/// Where in a request a secret takes its placeholder's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectionLocation {
    /// In the values of headers.
    pub header: bool,
    /// In the body.
    pub body: bool,
}

/// Secrets by the names of their fields. They are never shown, not even by `Debug`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub BTreeMap<String, String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A create or update request, decoded and resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialDraft {
    /// The name.
    pub display_name: Option<String>,
    /// The metadata.
    pub metadata: BTreeMap<String, String>,
    /// What it is for.
    pub auth: Auth,
    /// Secrets that are new.
    pub secrets: Secrets,
}

impl Auth {
    /// What no two active credentials of a vault may share.
    pub fn key(&self) -> String {
        match self {
            Self::McpOauth { mcp_server_url, .. } | Self::StaticBearer { mcp_server_url } => {
                format!("mcp {}", normal_url(mcp_server_url))
            }
            Self::EnvironmentVariable { secret_name, .. } => format!("env {secret_name}"),
        }
    }

    fn tag(&self) -> &'static str {
        match self {
            Self::McpOauth { .. } => "mcp_oauth",
            Self::StaticBearer { .. } => "static_bearer",
            Self::EnvironmentVariable { .. } => "environment_variable",
        }
    }
}

/// One spelling for URLs that mean the same server: scheme and host in lower case, no default port, no slashes at the end.
pub fn normal_url(url: &str) -> String {
    let normal = Url::parse(url).map_or_else(|_| url.to_owned(), String::from);
    normal.trim_end_matches('/').to_owned()
}

impl CredentialDraft {
    /// Decodes the body of `POST /v1/vaults/{vault_id}/credentials`; `for_headers` if the vault's credential goes into headers.
    pub fn decode(mut body: Fields, now: Timestamp, for_headers: bool) -> Result<Self, Invalid> {
        let mut secrets = Secrets::default();
        let mut auth = Fields::new(body.required("auth")?, body.at("auth"))?;
        let kind = auth.tag()?;
        let decoded = match kind.as_str() {
            "static_bearer" if for_headers => {
                if auth.text("mcp_server_url", 0, 2_048)?.is_some_and(|url| !url.is_empty()) {
                    let reason = "this vault's credential goes into headers, to its target domains";
                    return Err(auth.invalid("mcp_server_url", reason));
                }
                secrets.take_required(&mut auth, "token")?;
                Auth::StaticBearer { mcp_server_url: String::new() }
            }
            _ if for_headers => {
                let reason = "this vault's credential goes into headers: expected `static_bearer`";
                return Err(auth.invalid("type", reason));
            }
            "mcp_oauth" => Auth::McpOauth {
                mcp_server_url: server_url(&mut auth, "mcp_server_url")?,
                expires_at: expiry(&mut auth, now)?,
                refresh: {
                    secrets.take_required(&mut auth, "access_token")?;
                    auth.object("refresh")?
                        .map(|fields| refresh(fields, &mut secrets))
                        .transpose()?
                },
            },
            "static_bearer" => {
                secrets.take_required(&mut auth, "token")?;
                Auth::StaticBearer { mcp_server_url: server_url(&mut auth, "mcp_server_url")? }
            }
            "environment_variable" => {
                secrets.take_required(&mut auth, "secret_value")?;
                Auth::EnvironmentVariable {
                    secret_name: variable(&mut auth)?,
                    networking: networking(auth.required("networking")?, &auth.at("networking"))?,
                    injection_location: location(&mut auth, None)?,
                }
            }
            _ => {
                let known = ["mcp_oauth", "static_bearer", "environment_variable"];
                return Err(auth.unknown_tag(&kind, &known));
            }
        };
        auth.finish()?;
        let draft = Self {
            display_name: body.text("display_name", 0, 255)?,
            metadata: body.metadata("metadata")?,
            auth: decoded,
            secrets,
        };
        body.finish()?;
        Ok(draft)
    }

    /// Decodes the body of `POST /v1/vaults/{vault_id}/credentials/{credential_id}` against the stored credential.
    pub fn decode_update(
        mut body: Fields,
        stored: &Credential,
        now: Timestamp,
    ) -> Result<Self, Invalid> {
        let display_name = if body.has("display_name") {
            body.text("display_name", 1, 255)?
        } else {
            stored.display_name.clone()
        };
        let mut secrets = Secrets::default();
        let auth = match body.object("auth")? {
            Some(fields) => update_auth(fields, &stored.auth, &mut secrets, now)?,
            None => stored.auth.clone(),
        };
        let metadata = body.patch_metadata("metadata", &stored.metadata, false)?;
        body.finish()?;
        Ok(Self { display_name, metadata, auth, secrets })
    }
}

impl Secrets {
    fn take_required(&mut self, fields: &mut Fields, name: &str) -> Result<(), Invalid> {
        let value = fields.required_text(name, 1, SECRET)?;
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    fn take(&mut self, fields: &mut Fields, name: &str) -> Result<(), Invalid> {
        if let Some(value) = fields.text(name, 1, SECRET)? {
            self.0.insert(name.to_owned(), value);
        }
        Ok(())
    }
}

fn update_auth(
    mut fields: Fields,
    stored: &Auth,
    secrets: &mut Secrets,
    now: Timestamp,
) -> Result<Auth, Invalid> {
    let kind = fields.tag()?;
    if kind != stored.tag() {
        let reason = format!(
            "this credential is of type `{}`, which cannot be changed; create another one",
            stored.tag()
        );
        return Err(fields.invalid("type", reason));
    }
    for fixed in ["mcp_server_url", "secret_name"] {
        if fields.has(fixed) {
            let reason = "it cannot be changed; create another credential";
            return Err(fields.invalid(fixed, reason));
        }
    }
    let auth = match stored {
        Auth::McpOauth { mcp_server_url, expires_at, refresh } => {
            secrets.take(&mut fields, "access_token")?;
            let refresh = match (fields.object("refresh")?, refresh) {
                (None, kept) => kept.clone(),
                (Some(_), None) => {
                    let reason = "this credential was created without; create another one";
                    return Err(fields.invalid("refresh", reason));
                }
                (Some(fields), Some(stored)) => Some(update_refresh(fields, stored, secrets)?),
            };
            Auth::McpOauth {
                mcp_server_url: mcp_server_url.clone(),
                expires_at: expiry(&mut fields, now)?.or(*expires_at),
                refresh,
            }
        }
        Auth::StaticBearer { mcp_server_url } => {
            secrets.take(&mut fields, "token")?;
            Auth::StaticBearer { mcp_server_url: mcp_server_url.clone() }
        }
        Auth::EnvironmentVariable { secret_name, networking: kept, injection_location } => {
            secrets.take(&mut fields, "secret_value")?;
            let at = fields.at("networking");
            Auth::EnvironmentVariable {
                secret_name: secret_name.clone(),
                networking: match fields.take("networking") {
                    Some(value) => networking(value, &at)?,
                    None => kept.clone(),
                },
                injection_location: location(&mut fields, Some(*injection_location))?,
            }
        }
    };
    fields.finish()?;
    Ok(auth)
}

fn refresh(mut fields: Fields, secrets: &mut Secrets) -> Result<Refresh, Invalid> {
    secrets.take_required(&mut fields, "refresh_token")?;
    let mut auth =
        Fields::new(fields.required("token_endpoint_auth")?, fields.at("token_endpoint_auth"))?;
    let kind = auth.tag()?;
    let token_endpoint_auth = match kind.as_str() {
        "none" => TokenEndpointAuth::None,
        "client_secret_basic" => TokenEndpointAuth::ClientSecretBasic,
        "client_secret_post" => TokenEndpointAuth::ClientSecretPost,
        _ => {
            let known = ["none", "client_secret_basic", "client_secret_post"];
            return Err(auth.unknown_tag(&kind, &known));
        }
    };
    if token_endpoint_auth != TokenEndpointAuth::None {
        secrets.take_required(&mut auth, "client_secret")?;
    }
    auth.finish()?;
    let refresh = Refresh {
        client_id: fields.required_text("client_id", 1, 2_048)?,
        token_endpoint: server_url(&mut fields, "token_endpoint")?,
        token_endpoint_auth,
        scope: fields.text("scope", 0, 2_048)?,
        resource: fields.text("resource", 0, 2_048)?,
    };
    fields.finish()?;
    Ok(refresh)
}

fn update_refresh(
    mut fields: Fields,
    stored: &Refresh,
    secrets: &mut Secrets,
) -> Result<Refresh, Invalid> {
    secrets.take(&mut fields, "refresh_token")?;
    let scope = match fields.text("scope", 0, 2_048)? {
        Some(empty) if empty.is_empty() => None,
        Some(scope) => Some(scope),
        None => stored.scope.clone(),
    };
    if let Some(mut auth) = fields.object("token_endpoint_auth")? {
        let kind = auth.tag()?;
        let known = ["client_secret_basic", "client_secret_post"];
        if !known.contains(&kind.as_str()) {
            return Err(auth.unknown_tag(&kind, &known));
        }
        if stored.token_endpoint_auth == TokenEndpointAuth::None {
            let reason =
                "this credential's token endpoint takes no client secret; create another one";
            return Err(fields.invalid("token_endpoint_auth", reason));
        }
        // Whichever of the two is sent, the stored one stays.
        secrets.take(&mut auth, "client_secret")?;
        auth.finish()?;
    }
    for fixed in ["client_id", "token_endpoint", "resource"] {
        if fields.has(fixed) {
            let reason = "it cannot be changed; create another credential";
            return Err(fields.invalid(fixed, reason));
        }
    }
    fields.finish()?;
    Ok(Refresh { scope, ..stored.clone() })
}

fn server_url(fields: &mut Fields, name: &str) -> Result<String, Invalid> {
    let url = fields.required_text(name, 1, 2_048)?;
    let fits = Url::parse(&url).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
    });
    if fits { Ok(url) } else { Err(fields.invalid(name, "expected an http or https URL")) }
}

fn expiry(fields: &mut Fields, now: Timestamp) -> Result<Option<Timestamp>, Invalid> {
    match fields.timestamp("expires_at")? {
        Some(at) if at <= now => Err(fields.invalid("expires_at", "must be in the future")),
        expires_at => Ok(expires_at),
    }
}

fn variable(fields: &mut Fields) -> Result<String, Invalid> {
    let name = fields.required_text("secret_name", 1, 255)?;
    let word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if word && !name.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok(name);
    }
    let reason =
        "expected the name of a variable: letters, digits and `_`, not beginning with a digit";
    Err(fields.invalid("secret_name", reason))
}

fn networking(value: Value, path: &str) -> Result<CredentialNetworking, Invalid> {
    let mut fields = Fields::new(value, path)?;
    let kind = fields.tag()?;
    let networking = match kind.as_str() {
        "unrestricted" => CredentialNetworking::Unrestricted,
        "limited" => {
            let hosts = fields.list("allowed_hosts", HOSTS, |value, at| {
                let host = fields::string(value, &at)?;
                crate::environment::check_host(&host, &at)?;
                Ok(host)
            })?;
            match hosts {
                Some(allowed_hosts) => CredentialNetworking::Limited { allowed_hosts },
                None => return Err(fields.invalid("allowed_hosts", "is required")),
            }
        }
        _ => return Err(fields.unknown_tag(&kind, &["unrestricted", "limited"])),
    };
    fields.finish()?;
    Ok(networking)
}

/// Where a secret is put in. Left out: both at first, as stored later; a field that is left out is false at first, as stored later.
fn location(
    fields: &mut Fields,
    stored: Option<InjectionLocation>,
) -> Result<InjectionLocation, Invalid> {
    const OMIT: &str = "must not be null; omit the field instead";
    let both = InjectionLocation { header: true, body: true };
    let at = fields.at("injection_location");
    let value = match fields.patch("injection_location") {
        Patch::Absent => return Ok(stored.unwrap_or(both)),
        Patch::Null => return Err(Invalid::new(at, OMIT)),
        Patch::Set(value) => value,
    };
    let mut inner = Fields::new(value, at.clone())?;
    let before = stored.unwrap_or(InjectionLocation { header: false, body: false });
    let mut part = |name: &str, before: bool| -> Result<bool, Invalid> {
        match inner.patch(name) {
            Patch::Absent => Ok(before),
            Patch::Null => Err(inner.invalid(name, OMIT)),
            Patch::Set(Value::Bool(value)) => Ok(value),
            Patch::Set(other) => {
                let reason = format!("expected a boolean, got {}", fields::kind(&other));
                Err(inner.invalid(name, reason))
            }
        }
    };
    let location = InjectionLocation {
        header: part("header", before.header)?,
        body: part("body", before.body)?,
    };
    inner.finish()?;
    if location.header || location.body {
        Ok(location)
    } else {
        Err(Invalid::new(at, "at least one of `header` and `body` must be true"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_one_server_have_one_key() {
        for url in [
            "https://MCP.example.com/a/",
            "HTTPS://mcp.example.com:443/a",
            "https://mcp.example.com/a//",
        ] {
            assert_eq!(normal_url(url), "https://mcp.example.com/a", "{url}");
        }
        assert_ne!(
            normal_url("https://mcp.example.com/A"),
            normal_url("https://mcp.example.com/a")
        );
        assert_eq!(normal_url("https://mcp.example.com/"), normal_url("https://mcp.example.com"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let secrets = Secrets(BTreeMap::from([("token".to_owned(), "hush".to_owned())]));
        assert_eq!(format!("{secrets:?}"), "{\"token\"}");
    }
}
