//! Environments: where the tools of a session run, what they may reach and what is installed there. Always stored and shown fully resolved.

mod packages;

pub use packages::{Packages, PackagesKind};

use crate::{EnvironmentId, Fields, Invalid, Patch, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Most setup commands.
const SETUP_MAX: usize = 50;
/// Most characters of one.
const COMMAND_MAX: usize = 16_384;
/// Most sandboxes beside the default one, and most characters of a name.
const SANDBOXES_MAX: usize = 8;
const SANDBOX_NAME_MAX: usize = 24;
/// Most sandboxes of one kind that are kept ready, and how old each may become, in seconds.
const POOL_MAX: i64 = 64;
const AGE_MIN: i64 = 60;
const AGE_MAX: i64 = 86_400;
/// Most characters of a provider's name, and of an image's.
const PROVIDER_MAX: usize = 64;
const IMAGE_MAX: usize = 512;
/// Most variables, and most bytes of their names and values.
const ENV_MAX: usize = 200;
const ENV_BYTES_MAX: usize = 16_384;

/// An environment, as stored and as shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Always `environment`.
    #[serde(rename = "type")]
    pub kind: EnvironmentKind,
    /// Its id.
    pub id: EnvironmentId,
    /// Unique within the workspace, 1 to 256 characters.
    pub name: String,
    /// At most 2,048 characters.
    pub description: Option<String>,
    /// Where tools run.
    pub config: Config,
    /// At most 16 pairs.
    pub metadata: BTreeMap<String, String>,
    /// Who may use it.
    pub scope: Scope,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

/// The constant `environment`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentKind {
    /// The constant.
    #[default]
    Environment,
}

/// Who may use an environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everybody in the organization.
    #[default]
    Organization,
    /// The account that made it.
    Account,
}

/// Where tools run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Config {
    /// In sandboxes of this server.
    Cloud(Box<Cloud>),
    /// On workers of the customer.
    SelfHosted,
}

/// Sandboxes of this server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cloud {
    /// What they may reach.
    pub networking: Networking,
    /// What is installed in them.
    pub packages: Packages,
    /// Commands that run once after the packages are there; what they leave behind is where every session begins. An extension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub setup: Vec<String>,
    /// Variables of every process. Not for secrets. An extension.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Which of the server's sandbox providers makes them; its default if none is named. An extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The image they are made of, where the provider makes them of images; its default if none is named. An extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// More sandboxes of each session, beside its default one. An extension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandboxes: Vec<NamedSandbox>,
    /// Sandboxes that are kept ready for new sessions. An extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_pool: Option<WarmPool>,
}

/// How many sandboxes are kept ready, of each that a session of the environment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmPool {
    /// How many, 1 to 64.
    pub size: u32,
    /// After how many seconds one that nobody wanted is replaced, 60 to 86,400.
    pub max_age_seconds: u32,
}

/// Another sandbox of a session, with files of its own, which the model runs commands in by a tool of its own. What it may reach and what is installed is as in the default one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedSandbox {
    /// Its name, of small letters, digits and `_`.
    pub name: String,
    /// Which provider makes it; that of the default sandbox if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The image it is made of; that of the default sandbox if neither this nor a provider is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// For the model: what it is there for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The sandbox that every session has.
pub const DEFAULT_SANDBOX: &str = "default";

impl Cloud {
    /// The provider and the image of one of its sandboxes; none if there is none of that name.
    pub fn sandbox(&self, name: &str) -> Option<(Option<&str>, Option<&str>)> {
        if name == DEFAULT_SANDBOX {
            return Some((self.provider.as_deref(), self.image.as_deref()));
        }
        let named = self.sandboxes.iter().find(|sandbox| sandbox.name == name)?;
        let (provider, image) = (named.provider.as_deref(), named.image.as_deref());
        let like_default = provider.is_none() || provider == self.provider.as_deref();
        let image = image.or_else(|| self.image.as_deref().filter(|_| like_default));
        Some((provider.or(self.provider.as_deref()), image))
    }
}

/// What a sandbox may reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Networking {
    /// The public internet.
    Unrestricted,
    /// Named hosts.
    Limited {
        /// Hosts, or `*.` and a domain.
        allowed_hosts: Vec<String>,
        /// Also the MCP servers of the agent.
        allow_mcp_servers: bool,
        /// Also the registries of the package managers.
        allow_package_managers: bool,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self::Cloud(Box::new(Cloud {
            networking: Networking::Unrestricted,
            packages: Packages::default(),
            setup: Vec::new(),
            env: BTreeMap::new(),
            provider: None,
            image: None,
            sandboxes: Vec::new(),
            warm_pool: None,
        }))
    }
}

/// A create or update request, decoded and resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvironmentDraft {
    /// The name.
    pub name: String,
    /// The description.
    pub description: Option<String>,
    /// Where tools run.
    pub config: Config,
    /// The metadata.
    pub metadata: BTreeMap<String, String>,
    /// Who may use it.
    pub scope: Scope,
}

impl EnvironmentDraft {
    /// Decodes the body of `POST /v1/environments`.
    pub fn decode(mut body: Fields) -> Result<Self, Invalid> {
        let draft = Self {
            name: storable(body.required_text("name", 1, 256)?)?,
            description: body.text("description", 0, 2_048)?,
            config: match body.object("config")? {
                Some(config) => decode_config(config, None)?,
                None => Config::default(),
            },
            metadata: body.metadata("metadata")?,
            scope: scope(&mut body, Scope::default())?,
        };
        body.finish()?;
        Ok(draft)
    }

    /// Decodes the body of `POST /v1/environments/{environment_id}` against the stored environment.
    pub fn decode_update(mut body: Fields, stored: &Environment) -> Result<Self, Invalid> {
        let name = body.text("name", 1, 256)?.map(storable).transpose()?;
        let name = name.unwrap_or_else(|| stored.name.clone());
        let description = if body.has("description") {
            body.text("description", 0, 2_048)?
        } else {
            stored.description.clone()
        };
        let draft = Self {
            name,
            description,
            config: match body.object("config")? {
                Some(config) => decode_config(config, Some(&stored.config))?,
                None => stored.config.clone(),
            },
            metadata: body.patch_metadata("metadata", &stored.metadata, true)?,
            scope: scope(&mut body, stored.scope)?,
        };
        body.finish()?;
        Ok(draft)
    }
}

fn scope(body: &mut Fields, stored: Scope) -> Result<Scope, Invalid> {
    match body.string("scope")?.as_deref() {
        None => Ok(stored),
        Some("organization") => Ok(Scope::Organization),
        Some("account") => Ok(Scope::Account),
        Some(other) => {
            Err(crate::fields::one_of(&body.at("scope"), other, &["organization", "account"]))
        }
    }
}

/// Decodes `config`; what is left out of an update keeps what is stored.
fn decode_config(mut fields: Fields, stored: Option<&Config>) -> Result<Config, Invalid> {
    let kind = fields.tag()?;
    let changes = |wanted: bool| stored.is_some() && !wanted;
    match kind.as_str() {
        "self_hosted" => {
            if changes(matches!(stored, Some(Config::SelfHosted))) {
                return Err(type_change(&fields));
            }
            fields.finish()?;
            Ok(Config::SelfHosted)
        }
        "cloud" => {
            let Config::Cloud(mut cloud) = stored.cloned().unwrap_or_default() else {
                return Err(type_change(&fields));
            };
            match fields.patch("networking") {
                Patch::Absent => {}
                Patch::Null => cloud.networking = Networking::Unrestricted,
                Patch::Set(value) => {
                    let at = fields.at("networking");
                    cloud.networking = decode_networking(value, &at, &cloud.networking)?;
                }
            }
            match fields.patch("packages") {
                Patch::Absent => {}
                Patch::Null => cloud.packages = Packages::default(),
                Patch::Set(value) => {
                    cloud.packages = cloud.packages.patched(value, &fields.at("packages"))?;
                }
            }
            cloud.setup = fields.list("setup", SETUP_MAX, command)?.unwrap_or(cloud.setup);
            cloud.env = decode_env(&mut fields)?.unwrap_or(cloud.env);
            cloud.provider = word(&mut fields, "provider", PROVIDER_MAX, cloud.provider)?;
            cloud.image = word(&mut fields, "image", IMAGE_MAX, cloud.image)?;
            let named = fields.list("sandboxes", SANDBOXES_MAX, named_sandbox)?;
            cloud.sandboxes = named.unwrap_or(cloud.sandboxes);
            for (index, sandbox) in cloud.sandboxes.iter().enumerate() {
                if cloud.sandboxes[..index].iter().any(|other| other.name == sandbox.name) {
                    let reason = format!("two are called `{}`", sandbox.name);
                    return Err(fields.invalid("sandboxes", &reason));
                }
            }
            match fields.patch("warm_pool") {
                Patch::Absent => {}
                Patch::Null => cloud.warm_pool = None,
                Patch::Set(value) => {
                    let pool = warm_pool(value, &fields.at("warm_pool"), cloud.warm_pool)?;
                    cloud.warm_pool = Some(pool);
                }
            }
            if let Networking::Limited { allow_package_managers: false, .. } = &cloud.networking
                && !cloud.packages.is_empty()
            {
                let reason =
                    "packages under limited networking need `allow_package_managers: true`";
                return Err(fields.invalid("packages", reason));
            }
            fields.finish()?;
            Ok(Config::Cloud(cloud))
        }
        _ => Err(fields.unknown_tag(&kind, &["cloud", "self_hosted"])),
    }
}

/// A name without spaces; null takes it away.
fn word(
    fields: &mut Fields,
    name: &'static str,
    most: usize,
    stored: Option<String>,
) -> Result<Option<String>, Invalid> {
    match fields.patch(name) {
        Patch::Absent => Ok(stored),
        Patch::Null => Ok(None),
        Patch::Set(value) => {
            let at = fields.at(name);
            let word = crate::fields::string(value, &at)?;
            crate::fields::length(&word, &at, 1, most)?;
            if !word.chars().all(|c| c.is_ascii_graphic()) {
                return Err(Invalid::new(at, "must be letters, digits and signs without spaces"));
            }
            Ok(Some(word))
        }
    }
}

fn warm_pool(value: Value, at: &str, stored: Option<WarmPool>) -> Result<WarmPool, Invalid> {
    let mut fields = Fields::new(value, at)?;
    let stored = stored.unwrap_or(WarmPool { size: 1, max_age_seconds: 3_600 });
    let size = fields.integer("size", 1)?.unwrap_or_else(|| stored.size.into());
    if size > POOL_MAX {
        return Err(fields.invalid("size", format!("must be at most {POOL_MAX}")));
    }
    let age = fields.integer("max_age_seconds", AGE_MIN)?;
    let age = age.unwrap_or_else(|| stored.max_age_seconds.into());
    if age > AGE_MAX {
        return Err(fields.invalid("max_age_seconds", format!("must be at most {AGE_MAX}")));
    }
    fields.finish()?;
    let small = |number: i64| u32::try_from(number).expect("it was just checked");
    Ok(WarmPool { size: small(size), max_age_seconds: small(age) })
}

fn named_sandbox(value: Value, at: String) -> Result<NamedSandbox, Invalid> {
    let mut fields = Fields::new(value, &at)?;
    let name = fields.required_text("name", 1, SANDBOX_NAME_MAX)?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.chars().all(allowed) || name == DEFAULT_SANDBOX {
        let reason =
            "must be small letters, digits and `_`, and not `default`, which every session has";
        return Err(fields.invalid("name", reason));
    }
    let sandbox = NamedSandbox {
        name,
        provider: word(&mut fields, "provider", PROVIDER_MAX, None)?,
        image: word(&mut fields, "image", IMAGE_MAX, None)?,
        description: fields.text("description", 0, 1_024)?,
    };
    fields.finish()?;
    Ok(sandbox)
}

fn command(value: Value, at: String) -> Result<String, Invalid> {
    let command = crate::fields::string(value, &at)?;
    crate::fields::length(&command, &at, 1, COMMAND_MAX)?;
    if command.contains('\0') {
        return Err(Invalid::new(at, "must not contain a NUL character"));
    }
    Ok(command)
}

fn decode_env(fields: &mut Fields) -> Result<Option<BTreeMap<String, String>>, Invalid> {
    let at = fields.at("env");
    let Some(value) = fields.take("env") else { return Ok(None) };
    let Value::Object(map) = value else {
        return Err(Invalid::new(at, "expected an object of names and values"));
    };
    let mut env = BTreeMap::new();
    for (name, value) in map {
        let mut characters = name.chars();
        let named = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && characters.all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !named || name.len() > 256 {
            let reason = format!(
                "`{}` cannot be the name of a variable",
                name.chars().take(80).collect::<String>()
            );
            return Err(Invalid::new(at, reason));
        }
        let at = crate::fields::join(&at, &name);
        let value = crate::fields::string(value, &at)?;
        if value.contains('\0') {
            return Err(Invalid::new(at, "must not contain a NUL character"));
        }
        env.insert(name, value);
    }
    let size: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if env.len() > ENV_MAX || size > ENV_BYTES_MAX {
        let reason =
            format!("at most {ENV_MAX} variables of {ENV_BYTES_MAX} bytes together are allowed");
        return Err(Invalid::new(at, reason));
    }
    Ok(Some(env))
}

fn type_change(fields: &Fields) -> Invalid {
    fields
        .invalid("type", "the type of an environment cannot be changed; create another one")
        .with_error_code("invalid_config_type_change")
}

fn decode_networking(value: Value, path: &str, stored: &Networking) -> Result<Networking, Invalid> {
    let mut fields = Fields::new(value, path)?;
    let kind = fields.tag()?;
    let networking = match kind.as_str() {
        "unrestricted" => Networking::Unrestricted,
        "limited" => {
            let (hosts, mcp, managers) = match stored {
                Networking::Limited {
                    allowed_hosts,
                    allow_mcp_servers,
                    allow_package_managers,
                } => (allowed_hosts.clone(), *allow_mcp_servers, *allow_package_managers),
                Networking::Unrestricted => (Vec::new(), false, false),
            };
            Networking::Limited {
                allowed_hosts: fields
                    .list("allowed_hosts", 1_000, |value, at| {
                        let host = crate::fields::string(value, &at)?;
                        check_host(&host, &at)?;
                        Ok(host)
                    })?
                    .unwrap_or(hosts),
                allow_mcp_servers: fields.boolean("allow_mcp_servers")?.unwrap_or(mcp),
                allow_package_managers: fields
                    .boolean("allow_package_managers")?
                    .unwrap_or(managers),
            }
        }
        _ => return Err(fields.unknown_tag(&kind, &["unrestricted", "limited"])),
    };
    fields.finish()?;
    Ok(networking)
}

/// Whether hosts that are allowed include all of another host, or of `*.` and a domain.
pub fn allows(allowed: &[String], host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    allowed.iter().map(|rule| rule.to_ascii_lowercase()).any(|rule| {
        // `*.a` allows `*.b.a` as it allows `b.a`.
        let below = rule.strip_prefix('*');
        rule == host || below.is_some_and(|domain| host.ends_with(domain))
    })
}

/// Checks a host, or `*.` and a domain.
pub(crate) fn check_host(host: &str, at: &str) -> Result<(), Invalid> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    if host.len() <= 253 && !name.is_empty() && name.split('.').all(label) {
        return Ok(());
    }
    Err(Invalid::new(
        at,
        "expected a host such as `example.com` or `*.example.com`, without scheme, port or path",
    ))
}

/// Names are kept as keys, and not every store can keep a NUL in one.
fn storable(name: String) -> Result<String, Invalid> {
    if name.contains('\0') {
        return Err(Invalid::new("name", "must not contain a NUL character"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_includes_what_is_below_it() {
        let allowed = ["api.example.com", "*.example.org"].map(str::to_owned);
        for host in [
            "api.example.com",
            "API.example.com",
            "a.example.org",
            "*.example.org",
            "*.a.example.org",
        ] {
            assert!(allows(&allowed, host), "{host}");
        }
        for host in ["example.com", "*.example.com", "example.org", "evilexample.org", "*.org"] {
            assert!(!allows(&allowed, host), "{host}");
        }
    }
}
