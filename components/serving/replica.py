"""One model server process: started, watched, restarted with a growing pause, ended gracefully; never outliving us."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable

import aiohttp

from ..runtime.lines import MARK
from .model_server import SERVING_AT

MODULE = "kfp_flywheel.components.serving.model_server"
FOREVER_S = "1e9"
FIRST_PAUSE_S, LONGEST_PAUSE_S, STABLE_AFTER_S = 0.25, 32.0, 30.0
PROBE_S, PROBE_TIMEOUT_S, FAILED_PROBES = 2.0, 10.0, 3
GRACE_S = 15.0


class Replica:
    """A model server that is kept running until `stop`. Its fields tell what is true now; `changed` is then called."""

    def __init__(
        self,
        endpoint: str,
        version: str,
        package_uri: str,
        store: str,
        log_share: float,
        say: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self.endpoint, self.version = endpoint, version
        self.ready, self.url, self.reason, self.pid = False, "", "starting", 0
        self._arguments = ["--package", package_uri, "--store", store, "--name", endpoint, "--version", version]
        self._arguments += ["--log-share", str(log_share)]
        self._say, self._changed = say, changed
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the process: it finishes what it is at work on; after some seconds it is killed."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self.ready = False
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            # Nobody reads its output any more, and a full pipe would keep it from ending.
            reader = asyncio.create_task(_drop(process.stdout))
            try:
                await asyncio.wait_for(process.wait(), GRACE_S)
            except TimeoutError:
                self._kill()
                await process.wait()
            await reader
        self._say(f"{self.endpoint}: {self.version} is stopped")

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            self._started = time.monotonic()
            try:
                self.reason = await self._once()
            except OSError as error:
                self.reason = f"it could not be started: {error.strerror}"
            self.ready, self.url, self.pid = False, "", 0
            self._changed()
            if time.monotonic() - self._started > STABLE_AFTER_S:
                pause = FIRST_PAUSE_S
            self._say(f"{self.endpoint}: {self.version} ended: {self.reason}; it is started again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * 2)

    async def _once(self) -> str:
        """Run the process to its end, and say why it ended."""
        command = ["-m", "kfp_flywheel.components.runtime.leash", FOREVER_S, MODULE, *self._arguments, "--port", "0"]
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.pid = process.pid
        assert process.stdout is not None
        probe: asyncio.Task[None] | None = None
        last = rest = b""
        try:
            while chunk := await process.stdout.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                rest = rest[-4096:]
                for line in lines:
                    last = line.strip()[-1000:] or last
                    if line.startswith(SERVING_AT.encode()) and probe is None:
                        said = line.decode(errors="replace").removeprefix(SERVING_AT).split()
                        self.url, self.pid = said[0], int(said[-1])
                        probe = asyncio.create_task(self._probe())
        finally:
            if probe:
                probe.cancel()
        code = await process.wait()
        if code < 0:
            return f"it was ended by {signal.Signals(-code).name}"
        return (rest.strip() or last).decode(errors="replace").removeprefix(MARK) or f"exit code {code}"

    async def _probe(self) -> None:
        """Ask whether it is ready, and whether it still answers: one that hangs is killed, and so started again."""
        failed = 0
        address = f"{self.url}/v2/models/{self.endpoint}/ready"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)) as session:
            while failed < FAILED_PROBES:
                try:
                    async with session.get(address) as answer:
                        answers = answer.status == 200
                except (aiohttp.ClientError, TimeoutError):
                    answers = False
                failed = 0 if answers else failed + 1
                if answers and not self.ready:
                    self.ready, self.reason = True, ""
                    self._changed()
                    seconds = time.monotonic() - self._started
                    self._say(f"{self.endpoint}: {self.version} is ready at {self.url} ({seconds:.1f} s)")
                await asyncio.sleep(PROBE_S if self.ready else 0.1)
        self._say(f"{self.endpoint}: {self.version} does not answer its health check and is killed")
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


async def _drop(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and await stream.read(65536):
        pass
