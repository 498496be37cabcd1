"""The ledger: what the newest SDK can ask of the API, and what of it this server answers.

It reads operations, event types and response types out of the installed SDK package and the routes out of the server's source, and writes
docs/compatibility.md and openapi/openapi.json. With --check it writes nothing and fails if either file says something else.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import typing
from pathlib import Path

import anthropic
from anthropic.types.beta.sessions import BetaManagedAgentsEventParams, BetaManagedAgentsStreamSessionEvents
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

ROOT = Path(__file__).resolve().parents[2]
LEDGER = ROOT / "docs/compatibility.md"
OPENAPI = ROOT / "openapi/openapi.json"
# Families of the SDK's beta client that are another product's.
ELSEWHERE = {"messages", "organization"}
# Accepted by name only, to refuse them with a reason.
REFUSED_EVENTS = {"user.define_outcome"}
CALL = re.compile(r"self\._(get_api_list|get|post|delete|put|patch)\(\s*(?:path_template\(\s*)?\"(/v1/[^\"?]*)", re.S)


class Operation(typing.NamedTuple):
    name: str
    method: str
    path: str
    function: typing.Any


def operations() -> list[Operation]:
    client = anthropic.Anthropic(api_key="none", base_url="http://127.0.0.1:9")
    found: list[Operation] = []

    def walk(resource: object, prefix: str) -> None:
        for name, member in sorted(vars(type(resource)).items()):
            if name.startswith("_") or name.startswith("with_"):
                continue
            if type(member).__name__ == "cached_property":
                if prefix or name not in ELSEWHERE:
                    walk(getattr(resource, name), f"{prefix}{name}.")
            elif inspect.isfunction(member):
                call = CALL.search(inspect.getsource(member))
                if call:
                    verb = "GET" if call[1] == "get_api_list" else call[1].upper()
                    found.append(Operation(f"{prefix}{name}", verb, call[2], member))

    walk(client.beta, "")
    return found


def served() -> dict[str, tuple[str, str]]:
    """The server's routes by the SDK's name for them."""
    source = (ROOT / "crates/api/src/routes.rs").read_text()
    table = source[source.index("pub const TABLE") : source.index("];")]
    rows = re.findall(r'\(\s*"([A-Z]+)",\s*"([^"]+)",\s*"([^"]+)",?\s*\)', table)
    return {name: (method, path) for method, path, name in rows}


def extensions() -> list[tuple[str, str]]:
    """The server's routes that the SDK does not know."""
    source = (ROOT / "crates/api/src/routes.rs").read_text()
    table = source[source.index("pub const EXTENSIONS") :]
    return re.findall(r'\(\s*"([A-Z]+)",\s*"([^"]+)",?\s*\)', table[: table.index("];")])


# What the extensions take and answer.
EXTENSION_SHAPES: dict[str, dict[str, object]] = {
    "/v1/sessions/{session_id}/fork": {
        "summary": "Makes a new session that begins with the log of this one up to an event, and with its files as they were then",
        "properties": {
            "event_id": {"type": ["string", "null"], "description": "The last event to take; the whole log without it"},
            "title": {"type": ["string", "null"]},
            "metadata": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "null"]}},
        },
        "answers_like": "/v1/sessions",
    },
    "/v1/sessions/{session_id}/sandbox": {
        "summary": "What runs for a session, where, since when, and what it has used",
        "answer": {
            "type": "object",
            "required": ["type", "session_id", "data"],
            "properties": {
                "type": {"const": "session_sandboxes"},
                "session_id": {"type": "string"},
                "data": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "type": {"const": "sandbox"},
                            "session_id": {"type": "string"},
                            "name": {"type": "string"},
                            "provider": {"type": "string"},
                            "server": {"type": "string", "description": "The server that works with it"},
                            "state": {"enum": ["running", "paused", "ended"]},
                            "generation": {"type": "integer", "description": "Counts the session's sandboxes, from 1"},
                            "started_at": {"type": "string", "format": "date-time"},
                            "updated_at": {"type": "string", "format": "date-time"},
                            "ended_at": {"type": ["string", "null"], "format": "date-time"},
                            "active_seconds": {"type": "integer", "description": "How long the session's sandboxes have lived, all together"},
                            "network": {
                                "type": "object",
                                "properties": {name: {"type": "integer"} for name in ("connections", "refusals", "sent_bytes", "received_bytes")},
                            },
                        },
                    },
                },
            },
        },
    },
    "/v1/sessions/stop_all": {
        "summary": "Interrupts every running session of the workspace",
        "answer": {
            "type": "object",
            "required": ["type", "data"],
            "properties": {"type": {"const": "sessions_stopped"}, "data": {"type": "array", "items": {"type": "string"}}},
        },
    },
}
# What a cloud environment's configuration can have beside the SDK's fields.
EXTENSION_CONFIG: dict[str, object] = {
    "provider": {"type": ["string", "null"], "maxLength": 64, "x-extension": True, "description": "Which of the server's sandbox providers makes its sandboxes"},
    "image": {"type": ["string", "null"], "maxLength": 512, "x-extension": True, "description": "The image they are made of, where the provider makes them of images"},
    "sandboxes": {
        "type": "array", "maxItems": 8, "x-extension": True, "description": "More sandboxes of each session, each a tool for the model",
        "items": {
            "type": "object", "required": ["name"], "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 24, "pattern": "^[a-z0-9_]+$"},
                "provider": {"type": ["string", "null"], "maxLength": 64},
                "image": {"type": ["string", "null"], "maxLength": 512},
                "description": {"type": ["string", "null"], "maxLength": 1024},
            },
        },
    },
    "warm_pool": {
        "type": ["object", "null"], "x-extension": True, "description": "Sandboxes that are kept ready for new sessions", "additionalProperties": False,
        "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 64, "default": 1},
            "max_age_seconds": {"type": "integer", "minimum": 60, "maximum": 86_400, "default": 3_600},
        },
    },
    "setup": {"type": "array", "items": {"type": "string"}, "maxItems": 50, "x-extension": True, "description": "Commands that run once after the packages are there"},
    "env": {"type": "object", "additionalProperties": {"type": "string"}, "x-extension": True, "description": "Variables of every process; not for secrets"},
}
ERRORS = {"description": "An error", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}


def extension(method: str, path: str, paths: dict[str, typing.Any]) -> dict[str, object]:
    known = EXTENSION_SHAPES[path]
    if "answers_like" in known:
        ok = paths[known["answers_like"]]["post"]["responses"]["200"]
    else:
        ok = {"description": "OK", "content": {"application/json": {"schema": known["answer"]}}}
    taken = {"type": "object", "properties": known.get("properties", {}), "additionalProperties": False}
    body = {"requestBody": {"required": False, "content": {"application/json": {"schema": taken}}}} if method != "GET" else {}
    return {
        "operationId": re.sub(r"/{[^}]*}", "", path.removeprefix("/v1/")).replace("/", "."),
        "summary": known["summary"],
        "tags": ["extensions"],
        "x-extension": True,
        **body,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{([^}]*)}", path)],
        "responses": {"200": ok, "default": ERRORS},
    }


def literals(union: typing.Any) -> list[str]:
    found = []
    for item in typing.get_args(union):
        fields = getattr(item, "model_fields", None)
        hints = {"type": fields["type"].annotation} if fields else typing.get_type_hints(item) if inspect.isclass(item) else {}
        if "type" in hints:
            kind = hints["type"]
            while typing.get_origin(kind) is not typing.Literal:
                kind = typing.get_args(kind)[0]
            found += typing.get_args(kind)
        else:
            found += literals(item)
    return sorted(set(found))


def written_events() -> set[str]:
    """Event types that the server's source names as a whole string, or in a frame it writes."""
    text = ""
    for crate in ("core", "api", "worker", "types"):
        for file in sorted((ROOT / "crates" / crate / "src").rglob("*.rs")):
            text += file.read_text()
    return set(re.findall(r"[\"\\ ]((?:event_start|event_delta)|[a-z_]+\.[a-z_]+)[\"\\]", text)) - REFUSED_EVENTS


def shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


class Plain(GenerateJsonSchema):
    """Structure alone."""

    def encode_default(self, dft: object) -> object:
        return None if not isinstance(dft, (str, int, float, bool)) else dft


def clean(value: object) -> object:
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items() if key not in ("title", "description") or isinstance(item, dict)}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def schema(kind: object, components: dict[str, object]) -> dict[str, object]:
    if kind in (inspect.Signature.empty, None, type(None)):
        return {}
    try:
        made = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}", schema_generator=Plain)
    except Exception as error:  # a type pydantic cannot show is left open
        return {"x-unknown": type(error).__name__}
    components.update(made.pop("$defs", {}))
    return made


SKIPPED = {"self", "betas", "workspace_id", "extra_headers", "extra_query", "extra_body", "timeout"}


def arguments(operation: Operation) -> dict[str, tuple[object, bool]]:
    """Types and necessity of an operation's arguments, as the SDK declares them."""
    module = sys.modules[operation.function.__module__]
    hints = typing.get_type_hints(operation.function, vars(module) | {"Omit": anthropic.Omit, "omit": anthropic.omit})
    found = {}
    for name, parameter in inspect.signature(operation.function).parameters.items():
        if name in SKIPPED:
            continue
        kinds = [kind for kind in typing.get_args(hints[name]) if kind is not anthropic.Omit]
        optional = parameter.default is not inspect.Parameter.empty
        kind = typing.Union[tuple(kinds)] if typing.get_origin(hints[name]) is typing.Union and kinds else hints[name]
        found[name] = (kind, not optional)
    return found | {"return": (hints.get("return"), True)}


def query_name(name: str, operation: Operation) -> str:
    """`created_at_gte` travels as `created_at[gte]`, lists as `name[]`."""
    match = re.fullmatch(r"(created_at)_(gte|lte|gt|lt)", name)
    return f"{match[1]}[{match[2]}]" if match else name


def document(known: list[Operation], routes: dict[str, tuple[str, str]]) -> str:
    components: dict[str, object] = {}
    paths: dict[str, dict[str, object]] = {}
    by_name = {operation.name: operation for operation in known}
    for name, (method, path) in routes.items():
        operation = by_name[name]
        types = arguments(operation)
        returns, _ = types.pop("return")
        in_path = re.findall(r"\{([^}]*)\}", path)
        parameters, properties, required = [], {}, []
        for argument, (kind, needed) in types.items():
            made = schema(kind, components)
            if argument in in_path:
                continue
            if method == "POST":
                properties[argument] = made
                required += [argument] if needed else []
                continue
            array = made.get("type") == "array" or any(one.get("type") == "array" for one in made.get("anyOf", []))
            wire = query_name(argument, operation) + ("[]" if array else "")
            parameters.append({"name": wire, "in": "query", "required": needed, "schema": made})
        parameters = [{"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in in_path] + parameters
        answer, media = answer_of(returns, components)
        entry: dict[str, object] = {
            "operationId": name,
            "tags": [name.split(".")[0]],
            "parameters": parameters,
            "responses": {
                "200": {"description": "OK", "content": {media: {"schema": answer}}},
                "default": ERRORS,
            },
        }
        if properties:
            body = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
            entry["requestBody"] = {"required": bool(required), "content": {"application/json": {"schema": body}}}
        paths.setdefault(path, {})[method.lower()] = entry
    for method, path in extensions():
        paths.setdefault(path, {})[method.lower()] = extension(method, path, paths)
    for name in ("BetaCloudConfig", "BetaCloudConfigParams"):
        components[name]["properties"] |= EXTENSION_CONFIG
    components["Error"] = {
        "type": "object",
        "required": ["type", "error", "request_id"],
        "properties": {
            "type": {"const": "error"},
            "error": {"type": "object", "required": ["type", "message"], "properties": {"type": {"type": "string"}, "message": {"type": "string"}}},
            "request_id": {"type": "string"},
        },
    }
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "Vaquero: managed agents", "version": "managed-agents-2026-04-01", "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "security": [{"key": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "x-api-key"}, "bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {name: components[name] for name in sorted(components)},
        },
    }
    return json.dumps(clean(whole), indent=1, ensure_ascii=False) + "\n"


def answer_of(returns: object, components: dict[str, object]) -> tuple[dict[str, object], str]:
    origin = getattr(typing.get_origin(returns), "__name__", getattr(returns, "__name__", ""))
    metadata = getattr(returns, "__pydantic_generic_metadata__", None)
    inner = (metadata or {}).get("args") or typing.get_args(returns)
    if "Stream" in origin and inner:
        return schema(inner[0], components), "text/event-stream"
    if "Cursor" in origin or "Page" in origin:
        item = schema(inner[0], components) if inner else {}
        if "next_page" in getattr(returns, "model_fields", {}) or "PageCursor" in origin:
            rest = {"next_page": {"type": ["string", "null"]}}
        else:
            rest = {"has_more": {"type": "boolean"}, "first_id": {"type": ["string", "null"]}, "last_id": {"type": ["string", "null"]}}
        return {"type": "object", "properties": {"data": {"type": "array", "items": item}} | rest}, "application/json"
    return schema(returns, components), "application/json"


def ledger(known: list[Operation], routes: dict[str, tuple[str, str]]) -> str:
    families: dict[str, list[Operation]] = {}
    for operation in known:
        families.setdefault(operation.name.split(".")[0], []).append(operation)
    done = sum(operation.name in routes for operation in known)
    lines = [
        "# Compatibility",
        "",
        f"What the newest Python SDK (`anthropic` {anthropic.__version__}) can ask of the API, and what of it this server answers. Generated by",
        "`cargo xtask ledger` from the SDK package and the server's routes; a test fails when this page and the code disagree.",
        "",
        f"Operations: {done} of {len(known)}.",
        "",
    ]
    for family, members in families.items():
        have = sum(operation.name in routes for operation in members)
        lines += [f"## {family}: {have} of {len(members)}", "", "| operation | request | status |", "|---|---|---|"]
        for operation in members:
            status = "done" if operation.name in routes else "not yet"
            lines.append(f"| `{operation.name}` | `{operation.method} {operation.path}` | {status} |")
        lines.append("")
    written = written_events()
    accepted = literals(BetaManagedAgentsEventParams)
    lines += ["## Events a client sends", "", "| type | status |", "|---|---|"]
    lines += [f"| `{kind}` | {'done' if kind in written else 'not yet (refused by name)'} |" for kind in accepted]
    lines += ["", "## Events the server sends", "", "| type | status |", "|---|---|"]
    lines += [f"| `{kind}` | {'done' if kind in written else 'not yet'} |" for kind in literals(BetaManagedAgentsStreamSessionEvents)]
    lines += ["", "## Response types of the operations that are done", "", "| operation | type |", "|---|---|"]
    for operation in known:
        if operation.name in routes:
            returns = inspect.signature(operation.function).return_annotation
            lines.append(f"| `{operation.name}` | `{returns}` |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    known, routes = operations(), served()
    faults = []
    by_name = {operation.name: operation for operation in known}
    for name, (method, path) in routes.items():
        operation = by_name.get(name)
        if operation is None or (operation.method, shape(operation.path)) != (method, shape(path)):
            faults.append(f"{name}: the server has {method} {path}, the SDK {operation and (operation.method, operation.path)}")
    recorded = LEDGER.read_text() if check else ""
    if check:
        listed = set(re.findall(r"^\| `([a-z_.]+)` \| `[A-Z]+ [^|]*\| done \|$", recorded, re.M))
        faults += [f"{name}: docs/compatibility.md and the routes disagree" for name in sorted(listed ^ set(routes))]
        if not faults and f"(`anthropic` {anthropic.__version__})" not in recorded:
            print(f"the SDK {anthropic.__version__} is not the one the ledger was made from: run `cargo xtask ledger`")
            return 0
    if not faults:
        for file, text in ((LEDGER, ledger(known, routes)), (OPENAPI, document(known, routes))):
            if not check:
                file.parent.mkdir(exist_ok=True)
                file.write_text(text)
            elif file.read_text() != text:
                faults.append(f"{file.relative_to(ROOT)} is not what the SDK {anthropic.__version__} and the code say: run `cargo xtask ledger`")
    print("\n".join(faults) or f"{len(known)} operations, {len(routes)} served")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
