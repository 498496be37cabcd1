//! Where settings come from, so that a wrong one can be named together with its source.

use super::{BOOLEANS, NOT_SETTINGS, NUMBERS, ServeArgs};
use anyhow::bail;
use figment::{error::Kind, providers::Serialized, value::Value};
use std::ffi::OsStr;

/// One variable as a source of its own. Text stays text: a key of digits alone is no number.
pub(super) struct FromVariable {
    variable: String,
    setting: String,
    value: Value,
}

impl FromVariable {
    pub(super) fn of(name: &OsStr, value: &OsStr) -> anyhow::Result<Option<Self>> {
        let Some(variable) = name.to_str() else { return Ok(None) };
        let Some(setting) = variable.strip_prefix("VAQUERO_") else { return Ok(None) };
        let not_ours = setting.starts_with("TEST_") || is_of_a_cluster(setting);
        if NOT_SETTINGS.contains(&setting) || not_ours {
            return Ok(None);
        }
        let Some(text) = value.to_str() else { bail!("{variable}: the value is not valid UTF-8") };
        if text.is_empty() {
            return Ok(None);
        }
        let setting = setting.to_ascii_lowercase();
        let is_one_of = |known: &[&str]| known.contains(&setting.as_str());
        let value = match (text.parse::<u64>(), text.parse::<bool>()) {
            (Ok(number), _) if is_one_of(&NUMBERS) => Value::from(number),
            (_, Ok(flag)) if is_one_of(&BOOLEANS) => Value::from(flag),
            _ => Value::from(text),
        };
        Ok(Some(Self { variable: variable.to_owned(), setting, value }))
    }
}

/// What Kubernetes adds to every container for a service that is called `vaquero`.
fn is_of_a_cluster(setting: &str) -> bool {
    setting == "PORT" || setting.starts_with("PORT_") || setting.starts_with("SERVICE_")
}

impl figment::Provider for FromVariable {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(format!("variable {}", self.variable))
    }

    fn data(&self) -> figment::Result<figment::value::Map<figment::Profile, figment::value::Dict>> {
        let dict = figment::value::Dict::from([(self.setting.clone(), self.value.clone())]);
        Ok(figment::value::Map::from([(figment::Profile::Default, dict)]))
    }
}

/// The flags as a source of their own, so that errors name it.
pub(super) struct FromFlags(pub(super) ServeArgs);

impl figment::Provider for FromFlags {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named("command line")
    }

    fn data(&self) -> figment::Result<figment::value::Map<figment::Profile, figment::value::Dict>> {
        Serialized::defaults(&self.0).data()
    }
}

/// Where a setting came from, for a person.
pub(super) fn place(metadata: &figment::Metadata) -> String {
    match &metadata.source {
        Some(source) => format!("{} ({source})", metadata.name),
        None => metadata.name.to_string(),
    }
}

pub(super) fn describe(error: &figment::Error) -> anyhow::Error {
    let mut lines = Vec::new();
    for single in error.clone() {
        let place = single.metadata.as_ref().map_or_else(|| "the settings".to_owned(), place);
        let path = single.path.join(".");
        let what = match &single.kind {
            Kind::UnknownField(..) => {
                "there is no such setting; `vaquero serve --help` lists them".to_owned()
            }
            Kind::InvalidType(found, expected) if expected.starts_with(['u', 'i']) => {
                format!("expected a whole number, found {found}")
            }
            kind => kind.to_string(),
        };
        lines.push(format!("{path}: {what} — from {place}"));
    }
    anyhow::anyhow!("{}", lines.join("; "))
}
