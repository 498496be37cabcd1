//! The script: lines of the newest user text that begin with `!`. See `vaquero scripted-model --help` for the words.

use serde_json::{Value, json};

/// A failure the script asks for.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: u16,
    pub(super) times: u32,
}

/// What to answer.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) blocks: Vec<Value>,
    pub(super) stop_reason: Option<&'static str>,
    pub(super) stop_details: Value,
    pub(super) delay_ms: u64,
    pub(super) slow_ms: u64,
    pub(super) failure: Option<Failure>,
    pub(super) cut: Option<u32>,
    pub(super) usage: Option<[u64; 4]>,
}

/// Finds where the conversation stands in its script.
pub(super) fn plan(request: &Value) -> Plan {
    let empty = Vec::new();
    let messages = request["messages"].as_array().unwrap_or(&empty);
    let newest = messages
        .iter()
        .rposition(|message| message["role"] == "user" && !user_text(message).is_empty());
    let Some(newest) = newest else { return say("There is nothing to answer.") };
    let text = user_text(&messages[newest]);
    let step =
        messages[newest + 1..].iter().filter(|message| message["role"] == "assistant").count();
    if text.contains("Write a summary that lets you go on") {
        return say(
            "Summary by the scripted stand-in: the conversation so far was about a scripted task.",
        );
    }
    if text.lines().any(|line| line.starts_with('!')) {
        return scripted(&text, step, newest);
    }
    if text.to_lowercase().contains("fibonacci") {
        return fibonacci(request, messages, step);
    }
    say(&format!(
        "I am Vaquero's scripted stand-in, not a language model: I can only repeat what you wrote. You said: {text}"
    ))
}

fn user_text(message: &Value) -> String {
    let blocks = message["content"].as_array().into_iter().flatten();
    let texts: Vec<&str> = blocks.filter_map(|block| block["text"].as_str()).collect();
    texts.last().copied().unwrap_or_default().to_owned()
}

fn say(text: &str) -> Plan {
    Plan { blocks: vec![json!({ "type": "text", "text": text })], ..Plan::default() }
}

fn call(id: String, name: &str, input: &Value) -> Value {
    json!({ "type": "tool_use", "id": id, "name": name, "input": input })
}

fn scripted(text: &str, step: usize, turn: usize) -> Plan {
    let mut responses: Vec<Vec<&str>> = vec![Vec::new()];
    let mut repeat = 1;
    for line in text.lines().filter(|line| line.starts_with('!')) {
        if line.trim() == "!next" {
            push_repeated(&mut responses, &mut repeat);
        } else if let Some(count) = line.strip_prefix("!repeat ") {
            repeat = count.trim().parse().unwrap_or(1);
        } else if let Some(last) = responses.last_mut() {
            last.push(line);
        }
    }
    push_repeated(&mut responses, &mut repeat);
    responses.pop();
    let Some(lines) = responses.get(step) else { return say("Done.") };
    let mut plan = Plan::default();
    for (position, line) in lines.iter().enumerate() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let id = format!("toolu_{turn}_{step}_{position}");
        apply(&mut plan, word, rest, id);
    }
    if plan.blocks.is_empty() && plan.stop_reason.is_none() {
        plan.blocks.push(json!({ "type": "text", "text": "Done." }));
    }
    plan
}

fn push_repeated(responses: &mut Vec<Vec<&str>>, repeat: &mut usize) {
    let last = responses.last().cloned().unwrap_or_default();
    for _ in 1..*repeat {
        responses.push(last.clone());
    }
    *repeat = 1;
    responses.push(Vec::new());
}

fn apply(plan: &mut Plan, word: &str, rest: &str, id: String) {
    let number = |default: u64| rest.trim().parse().unwrap_or(default);
    match word {
        "!say" => plan.blocks.push(json!({ "type": "text", "text": rest })),
        "!think" => plan.blocks.push(
            json!({ "type": "thinking", "thinking": rest, "signature": format!("sig_{id}") }),
        ),
        "!bash" => plan.blocks.push(call(id, "bash", &json!({ "command": rest }))),
        "!tool" => {
            let (name, input) = rest.split_once(' ').unwrap_or((rest, "{}"));
            let input = serde_json::from_str(input).unwrap_or_else(|_| json!({}));
            plan.blocks.push(call(id, name, &input));
        }
        "!delay" => plan.delay_ms = number(0),
        "!slow" => plan.slow_ms = number(0),
        "!fail" => {
            let mut words = rest.split_whitespace();
            let status = words.next().and_then(|word| word.parse().ok()).unwrap_or(500);
            let times = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
            plan.failure = Some(Failure { status, times });
        }
        "!cut" => plan.cut = Some(u32::try_from(number(1)).unwrap_or(1)),
        "!max_tokens" => plan.stop_reason = Some("max_tokens"),
        "!pause" => plan.stop_reason = Some("pause_turn"),
        "!refuse" => {
            plan.stop_reason = Some("refusal");
            let category = if rest.is_empty() { Value::Null } else { json!(rest.trim()) };
            plan.stop_details = json!({ "type": "refusal", "category": category, "explanation": "the script refused" });
        }
        "!usage" => {
            let counts: Vec<u64> =
                rest.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            if let [input, output, read, write] = counts[..] {
                plan.usage = Some([input, output, read, write]);
            }
        }
        _ => plan
            .blocks
            .push(json!({ "type": "text", "text": format!("The script has no word `{word}`.") })),
    }
}

fn fibonacci(request: &Value, messages: &[Value], step: usize) -> Plan {
    let has_bash =
        request["tools"].as_array().into_iter().flatten().any(|tool| tool["name"] == "bash");
    if !has_bash {
        return say(
            "I would need the bash tool to write that file, and this agent does not have it.",
        );
    }
    if step == 0 {
        let command = "a=0; b=1\nfor i in $(seq 20); do echo $a; next=$((a + b)); a=$b; b=$next; done > fibonacci.txt\ncat fibonacci.txt";
        return Plan {
            blocks: vec![
                json!({ "type": "text", "text": "I'll compute the numbers in the sandbox and write them to fibonacci.txt." }),
                call(
                    format!("toolu_fibonacci_{}", messages.len()),
                    "bash",
                    &json!({ "command": command }),
                ),
            ],
            ..Plan::default()
        };
    }
    let result = messages.last().map(|message| message["content"].to_string()).unwrap_or_default();
    if result.contains("4181") {
        say("Done: fibonacci.txt holds the first 20 Fibonacci numbers, from 0 to 4181.")
    } else {
        say(
            "The command did not print what I expected, so I cannot say that fibonacci.txt is right.",
        )
    }
}
