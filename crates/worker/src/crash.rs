//! Named points where a test may have the process killed, to prove that the next one goes on from the log. Without the variable they cost one comparison.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// The variable that arms a point: its name, and after a colon which passing of it kills (1 if left out).
pub const VARIABLE: &str = "VAQUERO_CRASH_POINT";

/// Every point, in the order a turn passes them.
pub const POINTS: [&str; 12] = [
    "claimed",
    "before-turn-start",
    "after-turn-start",
    "model-answering",
    "before-answer",
    "after-answer",
    "before-generation",
    "after-generation",
    "tool-running",
    "before-result",
    "after-result",
    "before-idle",
];

struct Armed {
    name: String,
    passes: u32,
    seen: AtomicU32,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Passes a point; the process ends here, without any clean-up, if it is the armed one.
pub fn point(name: &str) {
    let armed = ARMED.get_or_init(|| {
        let value = std::env::var(VARIABLE).ok()?;
        let (name, passes) = value.split_once(':').unwrap_or((&value, "1"));
        Some(Armed {
            name: name.to_owned(),
            passes: passes.parse().unwrap_or(1),
            seen: AtomicU32::new(0),
        })
    });
    if let Some(armed) = armed
        && armed.name == name
        && armed.seen.fetch_add(1, Ordering::SeqCst) + 1 == armed.passes
    {
        std::process::abort();
    }
}
