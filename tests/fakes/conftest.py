"""The fakes, held to the vendors' own SDKs."""

import os, pathlib, subprocess, sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))


@pytest.fixture(scope="session")
def fake():
    """Starts a fake; where it listens."""
    started = []

    def start(name):
        script = pathlib.Path(__file__).with_name(f"fake_{name}.py")
        process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process.stdout.readline().rsplit(" ", 1)[1].strip()

    yield start
    for process in started:
        process.stdin.close()
        process.wait(20)
