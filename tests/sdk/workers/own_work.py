"""What a call takes the official worker's own tool, without any server: `own_work.py TIMES`."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time

from anthropic.lib.tools.agent_toolset import BashSession


async def main(times: int) -> None:
    took = []
    with tempfile.TemporaryDirectory() as place:
        session = await BashSession.start(place)
        for _ in range(times):
            started = time.perf_counter()
            await session.exec("echo '#done'")
            took.append(time.perf_counter() - started)
        await session.close()
    print(f"the official tool by itself, Python: p50 {statistics.median(took) * 1e3:.2f} ms")


asyncio.run(main(int(sys.argv[1])))
