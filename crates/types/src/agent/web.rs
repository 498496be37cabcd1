//! What the configs of the web tools hold beside the common settings: domain lists, sources of URLs, a location.

use super::tools::AgentToolset;
use crate::{
    Fields, Invalid,
    fields::{join, one_of},
};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Takes the fields of `web_fetch`.
pub(super) fn fetch(fields: &mut Fields) -> Result<Map<String, Value>, Invalid> {
    let mut web = domains(fields, false)?;
    web.insert("max_content_tokens".to_owned(), json!(fields.integer("max_content_tokens", 1)?));
    let sources = match fields.object("url_sources")? {
        Some(mut sources) => url_sources(&mut sources).and_then(|value| {
            sources.finish()?;
            Ok(value)
        })?,
        None => Value::Null,
    };
    web.insert("url_sources".to_owned(), sources);
    Ok(web)
}

/// Takes the fields of `web_search`.
pub(super) fn search(fields: &mut Fields) -> Result<Map<String, Value>, Invalid> {
    let mut web = domains(fields, true)?;
    let location = match fields.object("user_location")? {
        None => Value::Null,
        Some(mut location) => {
            let kind = location.tag()?;
            if kind != "approximate" {
                return Err(location.unknown_tag(&kind, &["approximate"]));
            }
            let country = location.text("country", 2, 2)?;
            if country.as_ref().is_some_and(|code| !code.chars().all(|c| c.is_ascii_uppercase())) {
                return Err(
                    location.invalid("country", "expected two capital letters, such as `US`")
                );
            }
            let value = json!({
                "type": "approximate",
                "city": location.text("city", 1, 255)?,
                "region": location.text("region", 1, 255)?,
                "country": country,
                "timezone": location.text("timezone", 1, 255)?,
            });
            location.finish()?;
            value
        }
    };
    web.insert("user_location".to_owned(), location);
    Ok(web)
}

fn domains(fields: &mut Fields, paths: bool) -> Result<Map<String, Value>, Invalid> {
    let mut web = Map::new();
    for name in ["allowed_domains", "blocked_domains"] {
        let at = fields.at(name);
        let list = fields.list(name, 64, |value, at| {
            let domain = crate::fields::string(value, &at)?;
            check_domain(&domain, &at, paths)?;
            Ok(domain)
        })?;
        if let Some(list) = &list {
            if list.is_empty() {
                let reason =
                    "Empty list of domains is ambiguous. Provide at least one domain or null.";
                return Err(Invalid::new(at, reason));
            }
            let mut seen = BTreeSet::new();
            for (index, domain) in list.iter().enumerate() {
                if !seen.insert(domain.trim_end_matches('/').to_ascii_lowercase()) {
                    return Err(Invalid::new(join(&at, index), "is listed twice"));
                }
            }
        }
        web.insert(name.to_owned(), json!(list));
    }
    if !web["allowed_domains"].is_null() && !web["blocked_domains"].is_null() {
        let reason = "Only one of allowed_domains or blocked_domains may be set.";
        return Err(Invalid::new(fields.path(), reason));
    }
    Ok(web)
}

fn check_domain(domain: &str, at: &str, paths: bool) -> Result<(), Invalid> {
    let refuse = |reason: &str| Err(Invalid::new(at, reason));
    if domain.is_empty() || domain.len() > 255 {
        return refuse("domains have 1 to 255 characters");
    }
    if !domain.is_ascii() {
        return refuse("write international names in punycode");
    }
    if domain.contains("://") {
        return refuse("give the host alone, without a scheme");
    }
    let (host, path) = domain.split_once('/').unwrap_or((domain, ""));
    if !path.is_empty() && !paths {
        return refuse("give the host alone, without a path");
    }
    if host.contains('*') {
        return refuse("wildcards are not supported; subdomains match by themselves");
    }
    if host.parse::<std::net::IpAddr>().is_ok() || host.starts_with('[') {
        return refuse(
            "IP addresses are not supported; provide a plain hostname like \"example.com\"",
        );
    }
    if host.contains(':') {
        return refuse("give the host alone, without a port");
    }
    let labels: Vec<&str> = host.split('.').collect();
    let valid = |label: &&str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if !labels.iter().all(valid) {
        return refuse("is not a hostname");
    }
    let last = labels[labels.len() - 1].to_ascii_lowercase();
    if labels.len() < 2 || last.chars().all(|c| c.is_ascii_digit()) {
        return refuse("a hostname has at least two labels, like \"example.com\"");
    }
    if ["local", "internal", "localdomain", "invalid", "localhost"].contains(&last.as_str()) {
        return refuse("names of private networks are not supported");
    }
    Ok(())
}

fn url_sources(fields: &mut Fields) -> Result<Value, Invalid> {
    let user = source(fields, "user_input", false)?;
    let client = source(fields, "client_tool_results", true)?;
    let server = source(fields, "server_tool_results", true)?;
    let none = json!({ "type": "none" });
    if [&user, &client, &server].iter().all(|source| **source == none) {
        return Err(Invalid::new(fields.path(), "at least one source must allow URLs"));
    }
    Ok(json!({ "user_input": user, "client_tool_results": client, "server_tool_results": server }))
}

fn source(fields: &mut Fields, name: &str, filters: bool) -> Result<Value, Invalid> {
    let at = fields.at(name);
    let known: &[&str] =
        if filters { &["all", "none", "only", "except"] } else { &["all", "none"] };
    let mut object = match fields.take(name) {
        None => return Ok(json!({ "type": "all" })),
        Some(Value::String(word)) if word == "all" || word == "none" => {
            return Ok(json!({ "type": word }));
        }
        Some(Value::String(word)) => return Err(one_of(&at, &word, &["all", "none"])),
        Some(value) => Fields::new(value, at)?,
    };
    let kind = object.tag()?;
    if !known.contains(&kind.as_str()) {
        return Err(object.unknown_tag(&kind, known));
    }
    if kind == "all" || kind == "none" {
        object.finish()?;
        return Ok(json!({ "type": kind }));
    }
    let tools = object.list("tools", 128, |value, at| {
        let mut reference = Fields::new(value, at)?;
        let kind = reference.tag()?;
        if kind != "tool_reference" {
            return Err(reference.unknown_tag(&kind, &["tool_reference"]));
        }
        let name = reference.required_text("name", 1, 128)?;
        reference.finish()?;
        Ok(json!({ "type": "tool_reference", "name": name }))
    })?;
    let Some(tools) = tools.filter(|tools| !tools.is_empty()) else {
        return Err(object.invalid("tools", "name at least one tool"));
    };
    object.finish()?;
    Ok(json!({ "type": kind, "tools": tools }))
}

/// Checks that every tool named as a source of URLs exists.
pub(super) fn check_references(
    toolset: &AgentToolset,
    customs: &BTreeSet<String>,
    path: &str,
) -> Result<(), Invalid> {
    for (index, config) in toolset.configs.iter().enumerate() {
        let Some(sources) = config.web.get("url_sources") else { continue };
        for (side, server) in [("client_tool_results", false), ("server_tool_results", true)] {
            let Some(tools) = sources[side]["tools"].as_array() else { continue };
            for (position, tool) in tools.iter().enumerate() {
                let name = tool["name"].as_str().unwrap_or_default();
                let known = if server {
                    name == "web_search" || name == "web_fetch"
                } else {
                    customs.contains(name)
                };
                if !known {
                    let at =
                        format!("{path}.configs.{index}.url_sources.{side}.tools.{position}.name");
                    return Err(Invalid::new(at, format!("there is no such tool `{name}`")));
                }
            }
        }
    }
    Ok(())
}
