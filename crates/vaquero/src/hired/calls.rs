//! Which calls of a session wait to be run, as its events tell. The same event may come twice: from the list and from the stream.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use vaquero_core::tools::SANDBOX_TOOLS;

/// A call of a built-in tool.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) input: Value,
    /// Not before a client has confirmed it.
    asks: bool,
}

/// What is known of a session.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// In the order the model made them.
    made: Vec<Call>,
    allowed: BTreeMap<String, bool>,
    settled: BTreeSet<String>,
    /// The turn is over, and nothing has come since.
    pub(super) rests: bool,
    /// The session is over.
    pub(super) over: bool,
}

impl Calls {
    /// Takes an event.
    pub(super) fn take(&mut self, event: &Value) {
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        match event["type"].as_str().unwrap_or_default() {
            "agent.tool_use" => {
                self.rests = false;
                let (id, name) = (text("id"), text("name"));
                let permission = text("evaluated_permission");
                let known = self.made.iter().any(|call| call.id == id);
                if !known && permission != "deny" && SANDBOX_TOOLS.contains(&name.as_str()) {
                    let (input, asks) = (event["input"].clone(), permission == "ask");
                    self.made.push(Call { id, name, input, asks });
                }
            }
            "user.tool_result" | "agent.tool_result" => {
                self.rests = false;
                self.settled.insert(text("tool_use_id"));
            }
            "user.tool_confirmation" => {
                self.allowed.insert(text("tool_use_id"), event["result"] == "allow");
            }
            "session.status_idle" => {
                self.rests = event["stop_reason"]["type"] != "requires_action";
            }
            "session.status_terminated" | "session.deleted" => self.over = true,
            _ => self.rests = false,
        }
    }

    /// A call's result is sent, or nobody wants it.
    pub(super) fn settle(&mut self, id: &str) {
        self.settled.insert(id.to_owned());
    }

    /// Whether a call has a result, from whomever.
    pub(super) fn is_settled(&self, id: &str) -> bool {
        self.settled.contains(id)
    }

    /// The next call that may run, in the order the model made them.
    pub(super) fn next(&self) -> Option<&Call> {
        self.made.iter().find(|call| {
            let may = !call.asks || self.allowed.get(&call.id) == Some(&true);
            may && !self.settled.contains(&call.id)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(id: &str, name: &str, permission: &str) -> Value {
        json!({ "type": "agent.tool_use", "id": id, "name": name, "input": {}, "evaluated_permission": permission })
    }

    #[test]
    fn calls_wait_in_their_order_until_they_are_settled() {
        let mut calls = Calls::default();
        for event in [
            call("1", "bash", "ask"),
            call("2", "read", "allow"),
            call("2", "read", "allow"),
            call("3", "web_search", "allow"),
            call("4", "bash", "deny"),
        ] {
            calls.take(&event);
        }
        let next = |calls: &Calls| calls.next().map(|call| call.id.clone());
        assert_eq!(next(&calls).as_deref(), Some("2"), "the first one asks");
        let confirmed =
            json!({ "type": "user.tool_confirmation", "tool_use_id": "1", "result": "allow" });
        calls.take(&confirmed);
        assert_eq!(next(&calls).as_deref(), Some("1"));
        calls.take(&json!({ "type": "user.tool_result", "tool_use_id": "1" }));
        calls.settle("2");
        assert_eq!(next(&calls), None, "others are not ours");
        let idle =
            |kind: &str| json!({ "type": "session.status_idle", "stop_reason": { "type": kind } });
        calls.take(&idle("requires_action"));
        assert!(!calls.rests);
        calls.take(&idle("end_turn"));
        assert!(calls.rests && !calls.over);
        calls.take(&json!({ "type": "session.status_running" }));
        assert!(!calls.rests);
        calls.take(&json!({ "type": "session.deleted" }));
        assert!(calls.over);
    }
}
