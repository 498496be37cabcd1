import os

import pytest

modal = pytest.importorskip("modal")


@pytest.fixture(scope="module")
def app(fake):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SERVER_URL": fake("modal"), "TOKEN_ID": "ak-0000", "TOKEN_SECRET": "as-0000"}.items():
            patch.setenv("MODAL_" + name, value)
        yield modal.App.lookup("fakes", create_if_missing=True)


@pytest.fixture
def sandbox(app):
    made = modal.Sandbox.create(app=app, image=modal.Image.from_registry("debian:stable"), block_network=True, timeout=120, tags={"for": "test"})
    yield made
    made.terminate()


def test_a_command_says_what_it_says_and_how_it_ends(sandbox):
    program = sandbox.exec("bash", "-c", "echo out; echo err >&2; exit 3")
    assert (program.stdout.read(), program.stderr.read(), program.wait()) == ("out\n", "err\n", 3)
    assert sandbox.exec("bash", "-c", "echo $X; pwd", env={"X": "y"}, workdir="/opt").stdout.read() == "y\n/opt\n"


def test_a_command_is_told_something_while_it_runs(sandbox):
    program = sandbox.exec("bash", "-c", "while read line; do echo got $line; done; echo end", text=True, bufsize=1)
    program.stdin.write("x" * 9000 + "\n")
    program.stdin.drain()
    lines = iter(program.stdout)
    assert next(lines) == "got " + "x" * 9000 + "\n"
    program.stdin.write_eof()
    program.stdin.drain()
    assert next(lines) == "end\n" and program.wait() == 0


def test_a_snapshot_is_what_others_begin_with(app, sandbox):
    sandbox.exec("bash", "-c", "echo first >/root/kept").wait()
    image = sandbox.snapshot_filesystem()
    sandbox.exec("bash", "-c", "echo second >/root/kept").wait()
    other = modal.Sandbox.create(app=app, image=image, timeout=60)
    assert other.exec("cat", "/root/kept").stdout.read() == "first\n"
    other.terminate()


def test_an_image_is_built(app):
    made = modal.Sandbox.create(app=app, image=modal.Image.from_registry("marked"), timeout=60)
    assert made.exec("cat", "/etc/image-mark").stdout.read() == "marked\n"
    made.terminate()
    with pytest.raises(modal.exception.Error, match="no-such/image"):
        modal.Sandbox.create(app=app, image=modal.Image.from_registry("no-such/image:1"), timeout=60)


def test_they_are_listed_by_what_they_are_for(app):
    image = modal.Image.from_registry("debian:stable")
    made = [modal.Sandbox.create(app=app, image=image, timeout=60, tags={"list": "me"}) for _ in range(5)]
    assert {it.object_id for it in modal.Sandbox.list(app_id=app.app_id, tags={"list": "me"})} == {it.object_id for it in made}
    for it in made:
        assert it.poll() is None
        it.terminate()
        assert it.poll() is not None
    assert not list(modal.Sandbox.list(app_id=app.app_id, tags={"list": "me"}))
