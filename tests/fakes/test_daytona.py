import asyncio

import pytest

sdk = pytest.importorskip("daytona")


@pytest.fixture(scope="module")
def daytona(fake):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAYTONA_API_KEY", "dtn_0000")
        patch.setenv("DAYTONA_API_URL", fake("daytona") + "/api")
        yield sdk.Daytona()


@pytest.fixture
def sandbox(daytona):
    made = daytona.create(sdk.CreateSandboxFromSnapshotParams(snapshot="daytona-small", os_user="root", network_block_all=True, labels={"for": "test"}))
    yield made
    made.delete()


def test_a_command_says_what_it_says_and_how_it_ends(sandbox):
    done = sandbox.process.exec("echo out; exit 3")
    assert (done.result, done.exit_code) == ("out\n", 3)
    assert sandbox.process.exec("id -u; echo $X", env={"X": "y"}).result == "0\ny\n"


def test_a_command_is_told_something_while_it_runs(sandbox):
    sandbox.process.create_session("one")
    request = sdk.SessionExecuteRequest(command="while read line; do echo got $line; echo err >&2; done", run_async=True, suppress_input_echo=True)
    command = sandbox.process.execute_session_command("one", request).cmd_id
    out, err = [], []

    async def follow():
        reading = asyncio.create_task(sandbox.process.get_session_command_logs_async("one", command, out.append, err.append))
        await asyncio.to_thread(sandbox.process.send_session_command_input, "one", command, "x" * 9000 + "\n")
        for _ in range(200):
            if "".join(err) == "err\n":
                break
            await asyncio.sleep(0.05)
        await asyncio.to_thread(sandbox.process.delete_session, "one")
        await asyncio.wait_for(reading, 20)

    asyncio.run(follow())
    assert "".join(out) == "got " + "x" * 9000 + "\n" and "".join(err) == "err\n"


def test_how_a_command_ended(sandbox):
    sandbox.process.create_session("two")
    done = sandbox.process.execute_session_command("two", sdk.SessionExecuteRequest(command="echo out; exit 4"))
    assert (done.exit_code, done.output) == (4, "out\n")
    assert sandbox.process.get_session_command("two", done.cmd_id).exit_code == 4


def test_files(sandbox):
    sandbox.fs.upload_file(b"some bytes", "/root/dir/file")
    assert sandbox.fs.download_file("/root/dir/file") == b"some bytes"
    assert [it.name for it in sandbox.fs.list_files("/root/dir")] == ["file"]


def test_stopping_keeps_files_and_ends_programs(sandbox):
    sandbox.process.exec("echo kept >/root/kept; sleep 600 >/dev/null 2>&1 &")
    sandbox.stop()
    assert sandbox.state == "stopped"
    sandbox.start()
    assert sandbox.process.exec("cat /root/kept; pgrep -c sleep -a || true").result.startswith("kept\n")
    assert "600" not in sandbox.process.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").result
    sandbox.refresh_activity()


def test_pausing_keeps_programs(sandbox):
    sandbox.process.exec("sleep 600 >/dev/null 2>&1 &")
    sandbox.pause()
    assert sandbox.state == "paused"
    sandbox.start()
    assert sandbox.process.exec("pgrep sleep").exit_code == 0


def test_a_snapshot_is_what_others_begin_with(daytona, sandbox):
    sandbox.process.exec("echo first >/root/kept")
    sandbox.create_snapshot("mine")
    other = daytona.create(sdk.CreateSandboxFromSnapshotParams(snapshot="mine", os_user="root"))
    assert other.process.exec("cat /root/kept").result == "first\n"
    other.delete()
    daytona.snapshot.delete(daytona.snapshot.get("mine"))
    with pytest.raises(sdk.DaytonaError):
        daytona.create(sdk.CreateSandboxFromSnapshotParams(snapshot="mine"))


def test_an_image_is_built(daytona):
    made = daytona.create(sdk.CreateSandboxFromImageParams(image="marked", os_user="root"), timeout=30)
    assert made.process.exec("cat /etc/image-mark").result == "marked\n"
    made.delete()
    with pytest.raises(sdk.DaytonaError, match="pull access denied"):
        daytona.create(sdk.CreateSandboxFromImageParams(image="no-such/image:1"), timeout=30)


def test_they_are_listed_by_what_they_are_for(daytona):
    made = [daytona.create(sdk.CreateSandboxFromSnapshotParams(labels={"list": "me"})) for _ in range(5)]
    assert {it.id for it in daytona.list(sdk.ListSandboxesQuery(labels={"list": "me"}))} == {it.id for it in made}
    for it in made:
        it.delete()


def test_what_is_wrong_is_said(daytona):
    with pytest.raises(sdk.DaytonaError, match="none-such"):
        daytona.create(sdk.CreateSandboxFromSnapshotParams(snapshot="none-such"))
    with pytest.raises(sdk.DaytonaError):
        daytona.get("none-such")
