//! Token counts and running time, as they add up over a session or thread. Counting is exact: every number comes from one durable record.

use crate::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// What model requests have used, in tokens. `input_tokens` counts only what no cache served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Input tokens read without a cache.
    pub input_tokens: u64,
    /// Tokens the model wrote, thinking included.
    pub output_tokens: u64,
    /// Input tokens served from a prompt cache.
    pub cache_read_input_tokens: u64,
    /// Input tokens written to the cache that lives five minutes.
    pub cache_creation_5m: u64,
    /// Input tokens written to the cache that lives an hour.
    pub cache_creation_1h: u64,
}

impl Usage {
    /// Adds one request's counts.
    pub fn add(&mut self, other: &Self) {
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cache_read_input_tokens += other.cache_read_input_tokens;
        self.cache_creation_5m += other.cache_creation_5m;
        self.cache_creation_1h += other.cache_creation_1h;
    }

    /// The wire's `usage` object of a session or thread.
    pub fn to_wire(&self, active: Duration) -> Value {
        json!({
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_read_input_tokens": self.cache_read_input_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.cache_creation_5m,
                "ephemeral_1h_input_tokens": self.cache_creation_1h,
            },
            "list_cost": null,
            "active_seconds": seconds(active),
            "server_tool_use": { "web_search_requests": 0, "web_fetch_requests": 0 },
        })
    }

    /// The wire's `model_usage` object of `span.model_request_end`.
    pub fn to_span(&self, speed: Option<&str>) -> Value {
        json!({
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_creation_input_tokens": self.cache_creation_5m + self.cache_creation_1h,
            "cache_read_input_tokens": self.cache_read_input_tokens,
            "speed": speed,
        })
    }
}

/// How long a session or thread has been running, over all its turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Microseconds of finished running time.
    pub active_micros: u64,
    /// When the present run began; none while it is not running.
    pub running_since: Option<i64>,
}

impl Activity {
    /// Marks the start of a run; a run under way goes on.
    pub fn start(&mut self, now: Timestamp) {
        self.running_since.get_or_insert(now.as_micros());
    }

    /// Marks the end of a run.
    pub fn stop(&mut self, now: Timestamp) {
        self.active_micros = u64::try_from(self.active(now).as_micros()).unwrap_or(u64::MAX);
        self.running_since = None;
    }

    /// Running time up to `now`.
    pub fn active(&self, now: Timestamp) -> Duration {
        let open = self
            .running_since
            .map_or(Duration::ZERO, |since| now.since(Timestamp::from_micros(since)));
        Duration::from_micros(self.active_micros) + open
    }
}

/// Seconds with millisecond precision, for the wire.
pub fn seconds(duration: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a session fit 52 bits")]
    let millis = duration.as_millis() as f64;
    millis / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_add_up_and_an_open_run_counts() {
        let at = |micros| Timestamp::from_micros(micros);
        let mut activity = Activity::default();
        activity.start(at(1_000));
        activity.start(at(2_000));
        activity.stop(at(4_000));
        assert_eq!(activity.active(at(9_000)), Duration::from_micros(3_000));
        activity.start(at(10_000));
        assert_eq!(activity.active(at(12_000)), Duration::from_micros(5_000));
    }
}
