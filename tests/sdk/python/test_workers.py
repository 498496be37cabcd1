"""Self-hosted environments, served by the official workers: in Python and in TypeScript, killed, replaced and doubled."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import anthropic
import pytest

from conftest import BASE, NEW, TOOLSET, message, texts, types, unique

WORKERS = pathlib.Path(__file__).parent.parent / "workers"
TYPESCRIPT = pathlib.Path(os.environ["VAQUERO_TEST_TYPESCRIPT"])
PATIENCE = 90


def worker_key(environment: str) -> str:
    """What `vaquero key create --environment` prints."""
    command = [os.environ["VAQUERO_TEST_EXE"], "key", "create", "--environment", environment, "--data-dir", os.environ["VAQUERO_TEST_DATA"]]
    environ = dict(os.environ)
    if database := os.environ.get("VAQUERO_TEST_DATABASE"):
        environ["VAQUERO_DATABASE_URL"] = database
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, env=environ).stdout.strip()


@pytest.fixture
def hosted(client):
    return client.beta.environments.create(name=unique("hosted"), config={"type": "self_hosted"})


@pytest.fixture
def start(hosted, tmp_path):
    """Starts a worker in a directory of its own, or of all workers."""
    running = []
    key = worker_key(hosted.id)

    def start(language: str = "python", directory: str = "work"):
        place = tmp_path / directory
        place.mkdir(exist_ok=True)
        if language == "python":
            command = [sys.executable, str(WORKERS / "worker.py")]
        else:
            if not TYPESCRIPT.joinpath("node_modules").exists() or not shutil.which("node"):
                pytest.skip("node is not here")
            # It finds its packages beside itself.
            program = TYPESCRIPT / "worker.mjs"
            shutil.copy(WORKERS / "worker.mjs", program)
            command = ["node", str(program)]
        log = open(tmp_path / f"worker-{len(running)}.log", "w")
        # A session of its own, so that what it started can be ended with it.
        process = subprocess.Popen([*command, hosted.id, key, str(place)], stdout=log, stderr=log, start_new_session=True)
        running.append(process)
        process.place, process.log = place, tmp_path / f"worker-{len(running) - 1}.log"
        return process

    yield start
    for process in running:
        kill(process)
        # Shown if the test fails.
        print(process.log.read_text())


def kill(process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


@pytest.fixture
def session(client, hosted):
    def make(text: str, **toolset):
        agent = client.beta.agents.create(name="hosted", model="scripted", tools=[{**TOOLSET, **toolset}])
        return client.beta.sessions.create(agent=agent.id, environment_id=hosted.id, initial_events=[message(text)])

    return make


def events(client, session) -> list:
    return list(client.beta.sessions.events.list(session.id, limit=1000))


def until(what: str, check):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not in {PATIENCE} s: {what}")


def said(client, session, text: str):
    return until(f"the agent says {text}", lambda: text in texts(events(client, session)) and events(client, session))


@pytest.mark.parametrize("language", ["python", "typescript"])
def test_a_worker_runs_the_tools(client, session, start, language):
    one = session("!bash echo hi > f; cat f; pwd\n!next\n!say done")
    waiting = until("the call waits", lambda: [e for e in events(client, one) if e.type == "agent.tool_use"])
    assert waiting[0].evaluated_permission == "allow"
    worker = start(language)
    seen = said(client, one, "done")
    result = next(e for e in seen if e.type == "user.tool_result")
    assert result.tool_use_id == waiting[0].id and not result.is_error
    assert "hi" in result.content[0].text and str(worker.place) in result.content[0].text
    assert (worker.place / "f").read_text() == "hi\n"
    assert "agent.tool_result" not in types(seen), "the worker's event is the result"
    # The next turn finds the same worker, or wakes one.
    client.beta.sessions.events.send(one.id, events=[message("!tool read {\"file_path\": \"f\"}\n!next\n!say again")])
    said(client, one, "again")


def test_a_worker_killed_in_a_call_is_replaced(client, session, start):
    one = session("!bash if [ -e log ]; then echo again; else touch log; sleep 3600 & wait; fi\n!next\n!say done")
    first = start(directory="shared")
    until("the command runs", lambda: (first.place / "log").exists())
    kill(first)
    start(directory="shared")
    seen = said(client, one, "done")
    results = [e for e in seen if e.type == "user.tool_result"]
    assert [e.content[0].text.strip() for e in results] == ["again"]


def test_two_workers_share_the_sessions(client, session, start):
    workers = [start(directory="one"), start(directory="two")]
    sessions = [session(f"!bash pwd; sleep 1 # {number}\n!next\n!say done") for number in range(4)]
    for one in sessions:
        said(client, one, "done")
    places = set()
    for one in sessions:
        results = [e for e in events(client, one) if e.type == "user.tool_result"]
        assert len(results) == 1, "nothing runs twice"
        places.add(results[0].content[0].text.strip())
    assert places <= {str(worker.place) for worker in workers}


def test_a_call_that_asks_waits_for_its_confirmation(client, session, start):
    one = session("!bash touch asked\n!next\n!say done", default_config={"permission_policy": {"type": "always_ask"}})
    worker = start()
    call = until("the call waits", lambda: [e for e in events(client, one) if e.type == "agent.tool_use"])[0]
    assert call.evaluated_permission == "ask"
    until("the session waits", lambda: client.beta.sessions.retrieve(one.id).status == "idle")
    assert not (worker.place / "asked").exists()
    client.beta.sessions.events.send(one.id, events=[{"type": "user.tool_confirmation", "tool_use_id": call.id, "result": "allow"}])
    said(client, one, "done")
    assert (worker.place / "asked").exists()


def test_the_queue_is_seen_and_ended(client, session, start, hosted):
    one = session("!bash sleep 6\n!next\n!say done")
    stats = client.beta.environments.work.stats(hosted.id)
    assert (stats.depth, stats.pending, stats.workers_polling) == (1, 0, 0)
    start()
    workers = anthropic.Anthropic(base_url=BASE, auth_token=worker_key(hosted.id), api_key=None, max_retries=0)
    item = until("a worker is at it", lambda: [w for w in workers.beta.environments.work.list(hosted.id) if w.state == "active"])[0]
    assert item.data.id == one.id and item.secret is None
    shown = client.beta.environments.work.retrieve(item.id, environment_id=hosted.id)
    assert shown.latest_heartbeat_at and shown.acknowledged_at and shown.started_at
    updated = client.beta.environments.work.update(item.id, environment_id=hosted.id, metadata={"a": "b"})
    assert updated.metadata == {"a": "b"}
    assert client.beta.environments.work.stop(item.id, environment_id=hosted.id).state == "stopping"
    until("the worker has left", lambda: client.beta.environments.work.retrieve(item.id, environment_id=hosted.id).state == "stopped")
    with pytest.raises(anthropic.PermissionDeniedError):
        client.beta.environments.work.poll(hosted.id)
    with pytest.raises(anthropic.PermissionDeniedError):
        workers.beta.agents.list()
