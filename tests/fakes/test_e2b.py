import threading

import pytest

e2b = pytest.importorskip("e2b")


@pytest.fixture(scope="module", autouse=True)
def service(fake):
    with pytest.MonkeyPatch.context() as patch:
        base = fake("e2b")
        for name, value in {"API_URL": base, "SANDBOX_URL": base, "API_KEY": "e2b_0000", "HTTP_VERSION": "1.1"}.items():
            patch.setenv("E2B_" + name, value)
        yield base


@pytest.fixture
def sandbox():
    made = e2b.Sandbox.create("base", timeout=120, metadata={"for": "test"}, allow_internet_access=False)
    yield made
    made.kill()


def test_a_command_says_what_it_says_and_how_it_ends(sandbox):
    said = []
    done = sandbox.commands.run("echo out; echo err >&2; exit 0", user="root", on_stdout=said.append)
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 0) and said == ["out\n"]
    with pytest.raises(e2b.CommandExitException) as failed:
        sandbox.commands.run("exit 3")
    assert failed.value.exit_code == 3


def test_a_command_is_told_something_while_it_runs(sandbox):
    handle = sandbox.commands.run("while read line; do echo got $line; done", background=True, stdin=True, user="root")
    got, first = [], threading.Event()

    def read():
        for stdout, _, _ in handle:
            got.append(stdout)
            first.set()
            return

    reader = threading.Thread(target=read)
    reader.start()
    sandbox.commands.send_stdin(handle.pid, "hello\n")
    assert first.wait(10) and got == ["got hello\n"]
    assert any(it.pid == handle.pid for it in sandbox.commands.list())
    assert sandbox.commands.kill(handle.pid)
    reader.join(10)


def test_files(sandbox):
    sandbox.files.write("/root/dir/file", b"some bytes", user="root")
    assert sandbox.files.read("/root/dir/file", user="root") == "some bytes"
    assert [it.name for it in sandbox.files.list("/root/dir", user="root")] == ["file"]
    assert sandbox.files.exists("/root/dir/file", user="root") and not sandbox.files.exists("/root/none", user="root")
    with pytest.raises(e2b.NotFoundException):
        sandbox.files.read("/root/none", user="root")


def test_pausing_keeps_files_and_ends_programs(sandbox):
    sandbox.files.write("/root/kept", "kept", user="root")
    handle = sandbox.commands.run("sleep 600", background=True, user="root")
    assert sandbox.pause(keep_memory=False)
    assert not sandbox.is_running()
    again = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert again.files.read("/root/kept", user="root") == "kept"
    assert all(it.pid != handle.pid for it in again.commands.list())


def test_pausing_with_memory_keeps_programs(sandbox):
    handle = sandbox.commands.run("sleep 600", background=True, user="root")
    assert sandbox.pause() and not sandbox.is_running()
    again = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert any(it.pid == handle.pid for it in again.commands.list())
    assert again.commands.run("pgrep sleep", user="root").exit_code == 0


def test_a_snapshot_is_what_others_begin_with(sandbox):
    sandbox.files.write("/root/kept", "first", user="root")
    snapshot = sandbox.create_snapshot(mode="filesystem")
    sandbox.files.write("/root/kept", "second", user="root")
    other = e2b.Sandbox.create(snapshot.snapshot_id, timeout=60)
    assert other.files.read("/root/kept", user="root") == "first"
    other.kill()
    assert e2b.Sandbox.delete_snapshot(snapshot.snapshot_id)
    with pytest.raises(e2b.SandboxException):
        e2b.Sandbox.create(snapshot.snapshot_id)


def test_they_are_listed_by_what_they_are_for():
    made = [e2b.Sandbox.create("base", timeout=60, metadata={"list": "me"}) for _ in range(5)]
    pages = e2b.Sandbox.list(query=e2b.SandboxQuery(metadata={"list": "me"}))
    found = []
    while pages.has_next:
        found += pages.next_items()
    assert {it.sandbox_id for it in found} == {it.sandbox_id for it in made}
    for it in made:
        it.set_timeout(30)
        assert it.get_info().state == e2b.SandboxState.RUNNING
        assert it.kill() and not it.kill()


def test_what_is_wrong_is_said():
    with pytest.raises(e2b.AuthenticationException):
        e2b.Sandbox.create("base", api_key="wrong")
    with pytest.raises(e2b.SandboxException, match="none-such"):
        e2b.Sandbox.create("none-such")
