"""Sessions, their events and streams."""

import json
import threading
import urllib.error
import urllib.request

import anthropic
import pytest
from conftest import BASE, KEY, NEW, TOOLSET, eventually, message, texts, types, unique

ASK = {"type": "custom", "name": "ask", "description": "asks", "input_schema": {"type": "object", "properties": {}}}
CAREFUL = {**TOOLSET, "default_config": {"permission_policy": {"type": "always_ask"}}}


def test_the_first_program_anyone_writes(client):
    agent = client.beta.agents.create(name="first", model="scripted", tools=[{"type": "agent_toolset_20260401"}])
    environment = client.beta.environments.create(name=f"first of {agent.id}")
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
    seen = []
    with client.beta.sessions.events.stream(session.id) as stream:
        text = "Write the first 20 Fibonacci numbers to fibonacci.txt"
        client.beta.sessions.events.send(session.id, events=[message(text)])
        for event in stream:
            if event.type == "agent.message":
                seen.append(event.content[0].text)
            elif event.type == "agent.tool_use":
                seen.append(event.name)
            elif event.type == "session.status_idle":
                break
    assert seen[1] == "bash" and "4181" in seen[2]
    assert client.beta.sessions.retrieve(session.id).status == "idle"


def test_the_order_of_a_turn(session, turn):
    expected = [
        "user.message", "session.status_running", "session.thread_status_running", "user.message",
        "span.model_request_start", "agent.thinking", "agent.message", "agent.tool_use", "span.model_request_end",
        "agent.tool_result", "span.model_request_start", "agent.message", "span.model_request_end",
        "session.thread_status_idle", "session.usage", "session.status_idle",
    ]
    events = turn(session(), "!think hm\n!say a\n!bash echo b\n!next\n!say c")
    got = types(events)
    assert got == (expected if NEW else [name for name in expected if name in got])
    assert events[0].processed_at is None and events[3].processed_at


def test_a_shell_keeps_its_state_and_files_stay(session, turn):
    one = session()
    results = [event for event in turn(one, "!bash cd /tmp; export A=1; echo x > /workspace/f\n!next\n!bash pwd; echo $A; cat /workspace/f; false") if event.type == "agent.tool_result"]
    assert results[1].content[0].text == "/tmp\n1\nx\n" and results[1].is_error
    again = [event for event in turn(one, '!tool read {"file_path": "f"}\n!tool glob {"pattern": "*"}\n!tool grep {"pattern": "x"}') if event.type == "agent.tool_result"]
    assert sorted(event.content[0].text for event in again) == ["/workspace/f", "/workspace/f:1:x\n", "x\n"]


def test_a_custom_tool(session, turn, client):
    one = session(ASK)
    answer = lambda ids: [{"type": "user.custom_tool_result", "custom_tool_use_id": ids[0], "content": [{"type": "text", "text": "42"}]}]
    events = turn(one, "!tool ask {}\n!next\n!say thanks", answer=answer)
    assert texts(events) == ["thanks"]
    call = next(event for event in events if event.type == "agent.custom_tool_use")
    with pytest.raises(anthropic.BadRequestError, match="answered already"):
        client.beta.sessions.events.send(one.id, events=answer([call.id]))


def test_confirmations_one_by_one(session, turn):
    def answer(ids):
        if len(ids) == 2:
            return [{"type": "user.tool_confirmation", "tool_use_id": ids[0], "result": "allow"}]
        return [{"type": "user.tool_confirmation", "tool_use_id": ids[0], "result": "deny", "deny_message": "no"}]

    events = turn(session(CAREFUL), "!bash echo one\n!bash echo two\n!next\n!say done", answer=answer)
    idle = [event.stop_reason for event in events if event.type == "session.status_idle"]
    assert [len(reason.event_ids) for reason in idle[:2]] == [2, 1] and idle[2].type == "end_turn"
    results = sorted(event.content[0].text for event in events if event.type == "agent.tool_result")
    assert results == ["Permission to use bash has been rejected. Rejection message: no", "one\n"]


def test_while_it_waits_only_answers_are_taken(session, turn, client):
    one = session(ASK)
    turn(one, "!tool ask {}")
    with pytest.raises(anthropic.BadRequestError, match="waiting on responses to events"):
        client.beta.sessions.events.send(one.id, events=[message("hello?")])
    events = turn(one, {"type": "user.interrupt"})
    assert "agent.tool_result" in types(events) and events[-1].stop_reason.type == "end_turn"
    assert texts(turn(one, "!say on")) == ["on"]


def test_an_interrupt_stops_a_running_command(session, client, turn):
    one = session()
    seen = []
    with client.beta.sessions.events.stream(one.id) as stream:
        client.beta.sessions.events.send(one.id, events=[message("!bash sleep 600")])
        for event in stream:
            seen.append(event)
            if event.type == "agent.tool_use":
                client.beta.sessions.events.send(one.id, events=[{"type": "user.interrupt"}])
            if event.type == "session.status_idle":
                break
    result = next(event for event in seen if event.type == "agent.tool_result")
    assert result.is_error and "interrupted" in result.content[0].text


def test_a_message_sent_meanwhile_is_handled_in_the_same_run(session, client):
    one = session()
    client.beta.sessions.events.send(one.id, events=[message("!bash sleep 0.5\n!next\n!say first")])
    client.beta.sessions.events.send(one.id, events=[message("!say second")])
    eventually("idle", lambda: client.beta.sessions.retrieve(one.id).status == "idle")
    events = list(client.beta.sessions.events.list(one.id))
    assert types(events).count("session.status_idle") == 1 and types(events).count("user.message") == 2
    assert texts(events)[-1] == "second"


def test_failures_are_retried_and_given_up(session, turn):
    # The stand-in counts its failures by conversation.
    said = unique("ok")
    events = turn(session(), f"!fail 529 2\n!say {said}")
    errors = [event.error for event in events if event.type == "session.error"]
    assert [error.retry_status.type for error in errors] == ["retrying", "retrying"]
    assert texts(events) == [said]
    gone = turn(session(), f"!fail 400 1\n!say {said}")
    assert gone[-1].stop_reason.type == "retries_exhausted"


@pytest.mark.skipif(not NEW, reason="older SDKs do not know the reason")
def test_a_refusal(session, turn):
    end = turn(session(), "!say I\n!refuse cyber")[-1]
    assert end.stop_reason.type == "refusal" and end.stop_details.category == "cyber"


@pytest.mark.skipif(not NEW, reason="older SDKs have no deltas")
def test_deltas_are_a_prefix_of_the_event(session, turn):
    events = turn(session(), "!say one two three\n!slow 5", event_deltas=["agent.message"])
    start = next(event for event in events if event.type == "event_start")
    told = "".join(event.delta.content.text for event in events if event.type == "event_delta")
    final = next(event for event in events if event.type == "agent.message")
    assert start.event.id == final.id and final.content[0].text.startswith(told) and told
    assert types(events).index("agent.message") > max(i for i, name in enumerate(types(events)) if name == "event_delta")


def test_listing(session, turn, client):
    one = session()
    turn(one, "!say a")
    turn(one, "!say b")
    everything = list(client.beta.sessions.events.list(one.id))
    paged = list(client.beta.sessions.events.list(one.id, limit=3))
    assert [event.id for event in paged] == [event.id for event in everything]
    newest = list(client.beta.sessions.events.list(one.id, order="desc", types=["agent.message"]))
    assert texts(newest) == ["b", "a"]
    page = client.beta.sessions.events.list(one.id, limit=3)
    with pytest.raises(anthropic.BadRequestError, match="order"):
        client.beta.sessions.events.list(one.id, limit=3, order="desc", page=page.next_page)


def test_sessions_are_listed_updated_archived_and_deleted(session, client):
    made = [session(title=f"t{number}") for number in range(3)]
    agents = [one.agent.id for one in made]
    assert [one.id for one in client.beta.sessions.list(agent_id=agents[1])] == [made[1].id]
    assert client.beta.sessions.update(made[0].id, title="new", metadata={"k": "v"}).title == "new"
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.update(made[0].id, extra_body={"environment_id": "env_1"})
    ended = []
    opened = threading.Event()

    def follow():
        with client.beta.sessions.events.stream(made[0].id) as stream:
            opened.set()
            ended.extend(event.type for event in stream)

    follower = threading.Thread(target=follow)
    follower.start()
    assert opened.wait(10)
    assert client.beta.sessions.archive(made[0].id).status == "terminated"
    with pytest.raises(anthropic.BadRequestError, match="Cannot send events to archived session"):
        client.beta.sessions.events.send(made[0].id, events=[message("x")])
    assert client.beta.sessions.delete(made[0].id).type == "session_deleted"
    follower.join(10)
    assert ended[-1] == "session.deleted" and "session.status_terminated" in ended
    with pytest.raises(anthropic.NotFoundError):
        client.beta.sessions.retrieve(made[0].id)


def test_initial_events_start_the_session(client, environment):
    agent = client.beta.agents.create(name="i", model="scripted")
    one = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, extra_body={"initial_events": [message("!say hi")]})
    assert one.status == "running"
    eventually("idle", lambda: client.beta.sessions.retrieve(one.id).status == "idle")
    assert texts(client.beta.sessions.events.list(one.id)) == ["hi"]


def test_a_session_has_the_vaults_it_was_made_with(client, environment):
    vault = client.beta.vaults.create(display_name="v")
    agent = client.beta.agents.create(name="n", model="scripted")
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, vault_ids=[vault.id])
    assert client.beta.sessions.retrieve(session.id).vault_ids == [vault.id]
    client.beta.vaults.archive(vault.id)
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        client.beta.sessions.create(agent=agent.id, environment_id=environment.id, vault_ids=[vault.id])


def test_what_the_server_cannot_do_yet_is_refused_by_name(client, environment):
    agent = client.beta.agents.create(name="n", model="scripted")
    resources = [{"type": "file", "file_id": "file_1"}]
    with pytest.raises(anthropic.BadRequestError, match="resources"):
        client.beta.sessions.create(agent=agent.id, environment_id=environment.id, extra_body={"resources": resources})


def test_the_primary_thread(session, turn, client):
    one = session()
    turn(one, "!say a")
    threads = list(client.beta.sessions.threads.list(one.id))
    assert len(threads) == 1 and threads[0].parent_thread_id is None
    thread = client.beta.sessions.threads.retrieve(threads[0].id, session_id=one.id)
    assert thread.status == "idle"
    events = list(client.beta.sessions.threads.events.list(thread.id, session_id=one.id))
    assert types(events) == types(client.beta.sessions.events.list(one.id))


def test_a_post_with_a_key_happens_once():
    def post(body):
        headers = {"x-api-key": KEY, "idempotency-key": f"suite-{NEW}", "anthropic-version": "2023-06-01"}
        request = urllib.request.Request(f"{BASE}/v1/agents", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    first = post({"name": "once", "model": "m"})
    assert first[0] == 200 and post({"name": "once", "model": "m"}) == first
    assert post({"name": "other", "model": "m"})[0] == 409


def test_a_stream_resumes_where_it_was_left(session, turn):
    one = session()
    turn(one, "!say a")
    headers = {"x-api-key": KEY, "last-event-id": "4"}
    request = urllib.request.Request(f"{BASE}/v1/sessions/{one.id}/events/stream", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        ids = []
        for line in response:
            if line.startswith(b"id: "):
                ids.append(int(line[4:]))
            if b"session.status_idle" in line:
                break
    assert ids and ids[0] > 4 and ids == sorted(set(ids))
