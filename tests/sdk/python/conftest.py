"""Fixtures: a client of the server under test, strict where the SDK is the newest."""

from __future__ import annotations

import os
import time
import uuid

import anthropic
import pytest

BASE = os.environ["VAQUERO_TEST_BASE_URL"]
KEY = os.environ["VAQUERO_TEST_API_KEY"]
NEW = os.environ.get("VAQUERO_TEST_GENERATION", "new") == "new"
TOOLSET = {"type": "agent_toolset_20260401"}


@pytest.fixture
def client():
    if not NEW:
        yield anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)
        return
    from strict import strict

    findings: list[str] = []
    yield strict(BASE, KEY, findings)
    assert not findings, "\n".join(sorted(set(findings)))


def unique(what: str) -> str:
    return f"{what} {uuid.uuid4().hex[:12]}"


@pytest.fixture
def environment(client):
    return client.beta.environments.create(name=unique("environment"))


@pytest.fixture
def session(client, environment):
    """Makes a session of a new agent with these tools."""

    def make(*tools, **options):
        agent = client.beta.agents.create(name="suite", model="scripted", tools=list(tools) or [TOOLSET])
        return client.beta.sessions.create(agent=agent.id, environment_id=environment.id, **options)

    return make


def message(text: str) -> dict:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


@pytest.fixture
def turn(client):
    """Opens the stream, sends, and reads to the idle event; `answer` says what to send when the session waits."""

    def run(session, *events, answer=None, **options):
        seen = []
        with client.beta.sessions.events.stream(session.id, **options) as stream:
            client.beta.sessions.events.send(session.id, events=[message(e) if isinstance(e, str) else e for e in events])
            for event in stream:
                seen.append(event)
                if event.type != "session.status_idle":
                    continue
                if event.stop_reason.type == "requires_action" and answer:
                    client.beta.sessions.events.send(session.id, events=answer(event.stop_reason.event_ids))
                    continue
                return seen

    return run


def types(events) -> list[str]:
    return [event.type for event in events]


def texts(events) -> list[str]:
    return ["".join(block.text for block in event.content) for event in events if event.type == "agent.message"]


def eventually(what: str, ask):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = ask()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not {what} within 30 s")
