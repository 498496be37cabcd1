//! Query strings: each parameter taken by name, what is left is refused.

use crate::{
    app::App,
    reject::{Reject, Result},
};
use axum::{extract::FromRequestParts, http::request::Parts};
use vaquero_store::Order;
use vaquero_types::{ApiError, Timestamp};

/// The parameters of a request.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

/// Bounds on an instant, as `name[gt]`, `name[gte]`, `name[lt]`, `name[lte]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) after: Option<Timestamp>,
    pub(crate) from: Option<Timestamp>,
    pub(crate) before: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
}

impl Bounds {
    /// Refuses a cursor that stands outside.
    pub(crate) fn admit(&self, at: Timestamp) -> Result<()> {
        let outside = self.after.is_some_and(|bound| at <= bound)
            || self.from.is_some_and(|bound| at < bound)
            || self.before.is_some_and(|bound| at >= bound)
            || self.until.is_some_and(|bound| at > bound);
        if outside {
            return Err(ApiError::invalid(
                "page: the created_at filter excludes the position of this page cursor",
            )
            .into());
        }
        Ok(())
    }
}

impl FromRequestParts<App> for Query {
    type Rejection = Reject;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes())
            .filter(|(name, _)| name != "beta")
            .map(|(name, value)| (name.into_owned(), value.into_owned()));
        Ok(Self { pairs: pairs.collect() })
    }
}

fn invalid(name: &str, reason: &str) -> Reject {
    ApiError::invalid(format!("{name}: {reason}")).into()
}

impl Query {
    /// Takes a parameter that may be given once; empty counts as absent.
    pub(crate) fn one(&mut self, name: &str) -> Result<Option<String>> {
        let mut values = self.take(|candidate| candidate == name);
        match values.len() {
            0 => Ok(None),
            1 => Ok(values.pop().filter(|value| !value.is_empty())),
            _ => Err(invalid(name, "may be given once")),
        }
    }

    /// Takes a repeated parameter, `name[]=a&name[]=b`.
    pub(crate) fn many(&mut self, name: &str) -> Vec<String> {
        let listed = format!("{name}[]");
        let indexed = format!("{name}[");
        self.take(|candidate| {
            candidate == listed
                || candidate == name
                || candidate
                    .strip_prefix(&indexed)
                    .and_then(|rest| rest.strip_suffix(']'))
                    .is_some_and(|index| {
                        !index.is_empty() && index.chars().all(|c| c.is_ascii_digit())
                    })
        })
    }

    fn take(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let (taken, left) =
            std::mem::take(&mut self.pairs).into_iter().partition(|(name, _)| wanted(name));
        self.pairs = left;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// Takes `limit`.
    pub(crate) fn limit(&mut self, default: usize, max: usize) -> Result<usize> {
        let Some(text) = self.one("limit")? else { return Ok(default) };
        match text.parse::<usize>() {
            Ok(limit) if (1..=max).contains(&limit) => Ok(limit),
            _ => Err(invalid(
                "limit",
                &format!("expected a whole number from 1 to {max}, got `{text}`"),
            )),
        }
    }

    /// Takes a boolean.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool> {
        match self.one(name)?.as_deref() {
            None | Some("false" | "False" | "0") => Ok(false),
            Some("true" | "True" | "1") => Ok(true),
            Some(other) => {
                Err(invalid(name, &format!("expected `true` or `false`, got `{other}`")))
            }
        }
    }

    /// Takes a whole number of at least 1.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(number) if number >= 1 && i64::try_from(number).is_ok() => Ok(Some(number)),
            _ => {
                Err(invalid(name, &format!("expected a whole number of at least 1, got `{text}`")))
            }
        }
    }

    /// Takes `order`.
    pub(crate) fn order(&mut self, default: Order) -> Result<Order> {
        match self.one("order")?.as_deref() {
            None => Ok(default),
            Some("asc") => Ok(Order::Ascending),
            Some("desc") => Ok(Order::Descending),
            Some(other) => {
                Err(invalid("order", &format!("expected `asc` or `desc`, got `{other}`")))
            }
        }
    }

    /// Takes the bounds of an instant; only the named ones (`gt`, `gte`, `lt`, `lte`) are known.
    pub(crate) fn bounds(&mut self, name: &str, known: &[&str]) -> Result<Bounds> {
        let mut bounds = Bounds::default();
        for (word, slot) in [
            ("gt", &mut bounds.after),
            ("gte", &mut bounds.from),
            ("lt", &mut bounds.before),
            ("lte", &mut bounds.until),
        ] {
            if !known.contains(&word) {
                continue;
            }
            let field = format!("{name}[{word}]");
            if let Some(text) = self.one(&field)? {
                // A plus sign in a query string reads as a space.
                let instant = Timestamp::parse(&text.replace(' ', "+"));
                let Some(instant) = instant else {
                    return Err(invalid(
                        &field,
                        &format!("expected an RFC 3339 date and time, got `{text}`"),
                    ));
                };
                *slot = Some(instant);
            }
        }
        Ok(bounds)
    }

    /// Refuses what was not taken.
    pub(crate) fn finish(self) -> Result<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(80).collect();
                Err(invalid(&name, "unknown query parameter"))
            }
        }
    }
}
