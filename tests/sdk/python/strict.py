"""An SDK client that holds every decoded response and event to the SDK's own types.

The SDK decodes leniently: a missing field turns up as an attribute error much later and an unknown one passes unnoticed.
Here both are collected as they arrive, one line each, and `conftest.py` fails the test that caused them.
"""

from __future__ import annotations

from typing import Any

import pydantic
from anthropic import Anthropic, BaseModel
from anthropic._models import construct_type, validate_type

# Left out by design: a custom tool's schema is given back as the client wrote it, and models come from the upstream as they are.
ABSENT_BY_DESIGN = {"input_schema", "ModelInfo", "BetaModelInfo"}


def unknown(value: Any, path: str) -> list[str]:
    if isinstance(value, BaseModel):
        lines = [f"{path}.{name}: unknown field" for name in value.model_extra or {} if name != "_request_id"]
        for name in type(value).model_fields:
            if name != "input_schema":
                lines += unknown(getattr(value, name, None), f"{path}.{name}")
        return lines
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in unknown(item, f"{path}[{key!r}]")]
    if isinstance(value, (list, tuple)):
        return [line for item in value for line in unknown(item, f"{path}[]")]
    return []


def absent(model: Any, data: Any, path: str) -> list[str]:
    if any(part in path for part in ABSENT_BY_DESIGN):
        return []
    lines = []
    if isinstance(model, BaseModel) and isinstance(data, dict):
        for name, field in type(model).model_fields.items():
            wire = field.alias or name
            if wire in data:
                lines += absent(getattr(model, name, None), data[wire], f"{path}.{wire}")
            else:
                lines.append(f"{path}.{wire}: left out instead of null")
    elif isinstance(model, (list, tuple)) and isinstance(data, list):
        for one, other in zip(model, data):
            lines += absent(one, other, f"{path}[]")
    return lines


def strict(base_url: str, api_key: str, findings: list[str], **options: Any) -> Anthropic:
    client = Anthropic(base_url=base_url, api_key=api_key, max_retries=0, **options)
    decode = client._process_response_data

    def check(*, data: object, cast_to: Any, response: Any) -> Any:
        name = getattr(cast_to, "__name__", str(cast_to))
        try:
            validate_type(type_=cast_to, value=data)
        except pydantic.ValidationError as error:
            findings.extend(f"{name}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        value = decode(data=data, cast_to=cast_to, response=response)
        probe = value if isinstance(value, BaseModel) else construct_type(type_=cast_to, value=data)
        findings.extend(unknown(probe, type(probe).__name__))
        findings.extend(absent(probe, data, type(probe).__name__))
        return value

    client._process_response_data = check  # type: ignore[method-assign]
    return client
