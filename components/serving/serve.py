"""`flywheel serve`: the gateway and the reconciler of one machine, in one process.

At most one is at work for a folder. Killed, however, it takes its model servers along; started again, it serves the
same wanted state.
"""

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..runtime.adapters.local.serving import LocalServing
from ..runtime.config import Platform
from ..runtime.errors import FlywheelError, PlatformError, UserError
from .replica import FOREVER_S

PORT = 8600
HOST = "127.0.0.1"
STARTS_WITHIN_S = 60.0
ENDS_WITHIN_S = 30.0


def serve(platform: Platform, port: int = PORT, on_event: Callable[[str], None] = print) -> int:
    """Serve every endpoint of a platform until SIGTERM or Ctrl-C.

    Args:
        platform: `serving` must be `local://`.
        port: Port of the gateway on 127.0.0.1; 0 takes a free one.
        on_event: Receives one line for each thing that happens.

    Returns:
        The exit code.

    Raises:
        UserError: The port is taken.
        Conflict: Another `flywheel serve` is at work for the same folder.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(platform, port, on_event))


async def _serve(platform: Platform, port: int, on_event: Callable[[str], None]) -> int:
    from .gateway import Gateway
    from .reconciler import Reconciler

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    serving = LocalServing(platform.serving)
    with serving.hold() as publish:
        gateway = Gateway()
        try:
            runner, taken = await gateway.start(HOST, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PlatformError(f"port {port} of {HOST} cannot be used: {error.strerror}.") from error
            raise UserError(
                f"port {port} of {HOST} is in use.", f"flywheel serve --port {port + 1}, or end what uses {port}"
            ) from error
        publish(f"http://{HOST}:{taken}")
        on_event(f"listening at http://{HOST}:{taken}")
        reconciler = Reconciler(platform.store, platform.log_share, serving, gateway, on_event)
        work = asyncio.create_task(reconciler.run())
        stopped = asyncio.create_task(ended.wait())
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()  # it never ends by itself but by an error
            on_event("ending: requests at work are answered, then the model servers stop")
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.wait([work, stopped])
            await runner.cleanup()
            await reconciler.stop()
    return 0


@contextlib.contextmanager
def serving(platform: Platform, port: int = 0) -> Iterator[str]:
    """Have endpoints served for the duration of a block, by a process of its own unless one is at work already.

    Yields:
        The gateway's address.

    Raises:
        PlatformError: It did not start; with its last line.
    """
    local = LocalServing(platform.serving)
    if found := local.server():
        yield str(found["url"])
        return
    local.folder.mkdir(parents=True, exist_ok=True)
    log = local.folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "kfp_flywheel.components.runtime.leash", FOREVER_S),
                *(
                    "kfp_flywheel.components.serving.serve",
                    "--platform",
                    platform.line(),
                    "--port",
                    str(port),
                ),
            ],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    try:
        yield _address(local, process, log)
    finally:
        process.terminate()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()


def _address(local: LocalServing, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        if found := local.server():
            return str(found["url"])  # ours, or one that was quicker: both serve this folder
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise PlatformError(f"flywheel serve did not start: {last[0]}", f"read {log}")
        time.sleep(0.02)
    raise PlatformError(f"flywheel serve did not listen within {STARTS_WITHIN_S:.0f} s.", f"read {log}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="serve", description=__doc__)
    parser.add_argument("--platform", required=True, help="the platform, as JSON")
    parser.add_argument("--port", type=int, default=PORT, help="port of the gateway; 0 takes a free one")
    arguments = parser.parse_args()
    try:
        code = serve(
            Platform.parse(arguments.platform), arguments.port, lambda line: print(f"serve | {line}", flush=True)
        )
    except FlywheelError as error:
        print(f"serve | {error}", flush=True)
        raise SystemExit(error.exit_code) from None
    raise SystemExit(code)


if __name__ == "__main__":
    main()
