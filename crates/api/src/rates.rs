//! Rate limits: token buckets per key and per workspace, off unless configured.

use crate::auth::Caller;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};
use vaquero_types::{ApiError, ErrorCode, Timestamp};

/// Requests a minute; none means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// POST requests of one key.
    pub key_create: Option<u32>,
    /// Other requests of one key.
    pub key_read: Option<u32>,
    /// POST requests of all keys of a workspace.
    pub workspace_create: Option<u32>,
    /// Other requests of all keys of a workspace.
    pub workspace_read: Option<u32>,
}

impl Rates {
    /// The figures the hosted service documents (`hosted`: 300 creations and 1,200 reads; `hosted-early`: 60 and 600).
    pub fn preset(name: &str) -> Option<Self> {
        let of = |create, read| Self {
            workspace_create: Some(create),
            workspace_read: Some(read),
            ..Self::default()
        };
        match name {
            "off" => Some(Self::default()),
            "hosted" => Some(of(300, 1_200)),
            "hosted-early" => Some(of(60, 600)),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// The buckets in use.
#[derive(Debug)]
pub(crate) struct Limiter {
    rates: Rates,
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl Limiter {
    /// Full buckets are forgotten beyond this many.
    const MOST: usize = 100_000;

    pub(crate) fn new(rates: Rates) -> Self {
        Self { rates, buckets: Mutex::default() }
    }

    /// Takes one token from each bucket that applies, or says when to come back.
    pub(crate) fn admit(
        &self,
        caller: &Caller,
        creates: bool,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let word = if creates { "create" } else { "read" };
        let (key, workspace) = if creates {
            (self.rates.key_create, self.rates.workspace_create)
        } else {
            (self.rates.key_read, self.rates.workspace_read)
        };
        for (owner, rate) in [(caller.key.as_str(), key), (caller.workspace.as_str(), workspace)] {
            if let Some(rate) = rate
                && let Some(seconds) = self.take(format!("{word} {owner}"), f64::from(rate), now)
            {
                let mut error = ApiError::new(
                    ErrorCode::RateLimited,
                    format!("more than {rate} {word} requests a minute; try again in {seconds} s"),
                );
                error.retry_after = Some(seconds);
                return Err(error);
            }
        }
        Ok(())
    }

    /// None if there was a token, else the seconds until there is one.
    fn take(&self, name: String, per_minute: f64, now: Timestamp) -> Option<u64> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() > Self::MOST {
            buckets.retain(|_, bucket| bucket.tokens < per_minute);
        }
        let bucket = buckets.entry(name).or_insert(Bucket { tokens: per_minute, at: now });
        let refill = now.since(bucket.at).as_secs_f64() * per_minute / 60.0;
        bucket.tokens = (bucket.tokens + refill).min(per_minute);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return None;
        }
        let wait = ((1.0 - bucket.tokens) * 60.0 / per_minute).ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and 60 seconds"
        )]
        Some((wait as u64).max(1))
    }
}
