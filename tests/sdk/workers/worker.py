"""The official environment worker, as anybody runs it: `worker.py ENVIRONMENT KEY DIRECTORY`. It leaves a session two seconds after it rests."""

from __future__ import annotations

import asyncio
import os
import sys

import anthropic

environment, key, directory = sys.argv[1:]
client = anthropic.AsyncAnthropic(base_url=os.environ["VAQUERO_TEST_BASE_URL"], api_key="not used by a worker")
worker = client.beta.environments.work.worker(environment_id=environment, environment_key=key, workdir=directory, max_idle=2)
asyncio.run(worker.run())
