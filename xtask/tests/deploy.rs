//! What `deploy/` ships is well-formed: the chart is rendered with its defaults and with everything turned on, by an engine for the same templates, and what comes out refers
//! to itself rightly; the compose file and the unit say what the server knows.

use gtmpl_ng::{Context, Template, Value as TemplateValue, helm_functions::HELM_FUNCTIONS};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(path: &str) -> String {
    fs::read_to_string(deploy().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn for_templates(value: &Value) -> TemplateValue {
    match value {
        Value::Null => TemplateValue::Nil,
        Value::Bool(value) => (*value).into(),
        Value::Number(value) => value.as_i64().expect("values are whole numbers").into(),
        Value::String(value) => value.as_str().into(),
        Value::Array(values) => TemplateValue::Array(values.iter().map(for_templates).collect()),
        Value::Object(values) => {
            let entries = values.iter().map(|(name, value)| (name.clone(), for_templates(value)));
            TemplateValue::Map(entries.collect::<HashMap<_, _>>())
        }
    }
}

/// The objects the chart makes of these values over its defaults.
fn rendered(values: &Value) -> Vec<Value> {
    let mut all = yaml(&read("helm/vaquero/values.yaml"));
    merge(&mut all, values);
    let data = json!({ "Values": all, "Release": { "Name": "mine" } });
    let helpers = read("helm/vaquero/templates/_helpers.tpl");
    let mut objects = Vec::new();
    for file in ["api.yaml", "worker.yaml", "network-policy.yaml"] {
        let mut template = Template::default();
        template.add_funcs(HELM_FUNCTIONS);
        let text = format!("{helpers}{}", read(&format!("helm/vaquero/templates/{file}")));
        template.parse(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let text = template
            .render(&Context::from(for_templates(&data)))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        for document in text.split("\n---").filter(|text| !text.trim().is_empty()) {
            let object = yaml(document);
            if !object.is_null() {
                objects.push(object);
            }
        }
    }
    objects
}

fn merge(into: &mut Value, over: &Value) {
    match (into, over) {
        (Value::Object(into), Value::Object(over)) => {
            for (name, value) in over {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, over) => *into = over.clone(),
    }
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found =
        objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn includes(whole: &Value, part: &Map<String, Value>) -> bool {
    part.iter().all(|(name, value)| whole[name] == *value)
}

#[test]
fn the_chart_is_whole() {
    let everything = json!({
        "blobUrl": "s3://bucket/prefix?endpoint=https://store",
        "blobSecret": "blobs",
        "serviceAccount": "account",
        "settings": { "VAQUERO_TURNS": "10" },
        "networkPolicy": { "from": [{ "podSelector": {} }] },
    });
    for values in [json!({}), everything.clone()] {
        let objects = rendered(&values);
        for object in &objects {
            for field in ["apiVersion", "kind"] {
                assert!(object[field].is_string(), "{object}");
            }
            assert!(object["metadata"]["name"].is_string(), "{object}");
        }
        for role in ["api", "worker"] {
            let kind = if role == "api" { "Deployment" } else { "StatefulSet" };
            let pods = named(&objects, kind, &format!("mine-{role}"));
            let labels = pods["spec"]["template"]["metadata"]["labels"].clone();
            let selects =
                |selector: &Value| includes(&labels, selector.as_object().expect("labels"));
            assert!(selects(&pods["spec"]["selector"]["matchLabels"]));
            let budget = named(&objects, "PodDisruptionBudget", &format!("mine-{role}"));
            assert!(selects(&budget["spec"]["selector"]["matchLabels"]));
            assert!(budget["spec"]["minAvailable"].as_i64() < pods["spec"]["replicas"].as_i64());
            let policy = named(&objects, "NetworkPolicy", &format!("mine-{role}"));
            assert!(selects(&policy["spec"]["podSelector"]["matchLabels"]));
            let service = if role == "api" { "mine" } else { "mine-worker" };
            assert!(selects(&named(&objects, "Service", service)["spec"]["selector"]));
            let container = &pods["spec"]["template"]["spec"]["containers"][0];
            assert_eq!(container["args"], json!(["serve", "--role", role]));
            let port = &container["ports"][0]["name"];
            for probe in ["startupProbe", "readinessProbe"] {
                assert_eq!(container[probe]["httpGet"]["port"], *port);
                assert_eq!(container[probe]["httpGet"]["path"], "/health");
            }
            let variables = container["env"].as_array().expect("a list");
            let names: Vec<&str> =
                variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
            assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "{names:?}");
            for secret in ["VAQUERO_DATABASE_URL", "VAQUERO_API_KEY", "VAQUERO_ANTHROPIC_API_KEY"] {
                let variable = variables.iter().find(|variable| variable["name"] == secret);
                let by_reference = &variable.expect(secret)["valueFrom"]["secretKeyRef"]["name"];
                assert_eq!(*by_reference, "vaquero", "{secret} is only referred to");
            }
        }
    }
    assert!(
        rendered(&json!({ "networkPolicy": { "enabled": false } }))
            .iter()
            .all(|object| object["kind"] != "NetworkPolicy")
    );
    let worker = rendered(&everything);
    let worker = named(&worker, "StatefulSet", "mine-worker").to_string();
    for expected in ["VAQUERO_BLOB_URL", "AWS_SECRET_ACCESS_KEY", "VAQUERO_TURNS", "account"] {
        assert!(worker.contains(expected), "{expected}");
    }
}

#[test]
fn every_variable_is_a_setting() {
    let help = fs::read_to_string(deploy().join("../docs/configuration.md")).expect("the settings");
    let mut texts = vec![read("docker-compose.yaml"), read("Dockerfile")];
    texts.extend(
        ["api.yaml", "worker.yaml", "_helpers.tpl"]
            .map(|file| read(&format!("helm/vaquero/templates/{file}"))),
    );
    for text in texts {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for variable in words.filter(|word| word.starts_with("VAQUERO_")) {
            let setting = variable.trim_start_matches("VAQUERO_").to_lowercase().replace('_', "-");
            let known = help.contains(&format!("--{setting}")) || help.contains(variable);
            assert!(known, "{variable} is not in docs/configuration.md");
        }
    }
}

#[test]
fn the_compose_file_is_whole() {
    let compose = yaml(&read("docker-compose.yaml"));
    let services = compose["services"].as_object().expect("services");
    for (name, service) in services {
        assert!(service["image"].is_string(), "{name} has no image");
        let needs = match &service["depends_on"] {
            Value::Object(needs) => needs.keys().cloned().collect(),
            Value::Array(needs) => {
                needs.iter().filter_map(|need| need.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        };
        for need in needs {
            assert!(services.contains_key(&need), "{name} needs {need}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let volume =
                volume.as_str().and_then(|volume| volume.split(':').next()).expect("a name");
            assert!(compose["volumes"].get(volume).is_some(), "{name} mounts {volume}");
        }
    }
    for server in ["one", "two"] {
        let options = services[server]["security_opt"].to_string();
        assert!(
            options.contains("seccomp=unconfined") && options.contains("systempaths=unconfined")
        );
    }
}

#[test]
fn the_unit_keeps_sandboxes_alive() {
    let unit = read("vaquero.service");
    for line in ["KillMode=process", "Delegate=yes", "EnvironmentFile=/etc/vaquero.env"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}
