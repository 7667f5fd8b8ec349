"""`flywheel watch`: the schedule of one machine. It works off what was asked for, looks for new data and for drift.

One run at a time, and endpoints are served meanwhile. What was asked for lies in a folder, so a watcher that was killed
goes on where it was.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..components.ingest.document import find
from ..components.ingest.listing import listing
from ..components.runtime import config
from ..components.runtime.artifacts import content_id
from ..components.runtime.config import Platform
from ..components.runtime.errors import FlywheelError, PlatformError
from ..components.runtime.folder import SCHEMES
from ..components.runtime.ports import RunRequest
from ..components.runtime.wiring import connect, open_store
from ..components.serving.serve import serving
from . import running
from .platforms import read_yaml
from .watcher import AWAY, NewData, RunEnded, Schedule, Watcher, queue_of

LOOK_S = 2.0
REMOTE_LOOK_S = 30.0
"""Seconds between two looks at a source in an object store: each listing of it costs."""


def watch(
    data: str,
    file: Path | None,
    every_s: float,
    endpoint: str,
    once: bool,
    platform: Platform,
    root: Path,
    port: int,
    say: Callable[[str], None],
) -> int:
    """Watch until Ctrl-C, or do once what is due.

    Args:
        data: Data set whose changes start the flywheel; empty for none.
        file: YAML file of parameters, of flywheel and of monitor.
        every_s: Seconds between two runs of the monitor; 0 for none.
        endpoint: Overrules the one in the file.
        say: Receives a line for each thing that happens.

    Returns:
        The highest exit code of all runs.

    Raises:
        UserError: A parameter is wrong, or the platform has no runs.
        Conflict: Another one watches.
    """
    flywheel, monitor = parameters(data, file, endpoint)
    source = str(flywheel["source"])
    look_s = REMOTE_LOOK_S if source.startswith(SCHEMES) else LOOK_S
    new = NewData(
        lambda: fingerprint(source),
        lambda found: RunRequest(
            name=f"data-{found}-{int(time.time())}",
            pipeline="flywheel",
            parameters=flywheel,
            reason=f"{source} was not seen like this before",
            at=time.time(),
        ),
        0 if once else look_s,
    )
    turn = Schedule(
        float("inf") if once else every_s,
        lambda: RunRequest(
            name=f"monitor-{monitor['endpoint']}",
            pipeline="monitor",
            parameters=monitor,
            reason="it is due" if once else f"it is due every {every_s:g} s",
            at=time.time(),
        ),
    )
    runs = queue_of(platform)
    with runs.hold(), served(platform, port, say):
        start = starter(platform, root, port)
        watcher = Watcher(
            *(runs, start, say, new if source else None, turn if every_s else None), tries=1 if once else 3
        )
        watcher.round()
        if not once:
            say(f"watching {runs.folder}{f' and {source}' if source else ''}; Ctrl-C ends it")
        while not once:
            time.sleep(LOOK_S)
            watcher.round()
        if source:  # the second look
            time.sleep(LOOK_S)
            watcher.round()
    return watcher.worst


def parameters(data: str, file: Path | None, endpoint: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of flywheel and of monitor, which stand in one file. Without data, `source` is empty.

    Raises:
        UserError: One is unknown or wrong.
    """
    given: dict[str, Any] = dict(read_yaml(file, "config")) if file else {}
    given |= {"endpoint": endpoint} if endpoint else {}
    given |= {"source": running.source_of(data)} if data else {}
    monitor = running.for_monitor(given)
    of_monitor = config.names_of((config.Monitor,))
    rest = {name: value for name, value in given.items() if name not in of_monitor or name == "endpoint"}
    flywheel = running.check("flywheel", {"source": "none"} | rest)
    return flywheel | {"source": given.get("source", "")}, monitor


def fingerprint(source: str) -> str:
    """What a source holds, without its bytes: paths, sizes and times of change; of an object store, the names.

    One that cannot be used has a fingerprint too: the run that it starts tells people why.

    Raises:
        PlatformError: The object store is away, which says nothing about the source.
    """
    try:
        if source.startswith(SCHEMES):
            folder, _, last = source.rstrip("/").rpartition("/")
            store = open_store(folder if last.endswith((".yaml", ".yml")) else source)
            return content_id(list(store.list("")))
        files = {find(source)}
        for found in listing(source).found:
            files |= {found.image, found.label} if found.label else {found.image}
        stats = [(str(path), path.stat()) for path in sorted(files)]
        return content_id([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
    except PlatformError:
        raise
    except (FlywheelError, OSError) as error:
        return content_id(str(error))


def starter(platform: Platform, root: Path, port: int) -> Callable[[RunRequest], RunEnded]:
    """Runs as `flywheel run` does; whatever goes wrong is the run's end, not the watcher's."""

    def start(request: RunRequest) -> RunEnded:
        run, decision, code = "", "", AWAY
        try:
            given = running.check(request.pipeline, request.parameters)
            ended = running.run(given, platform, root, port, quiet=True, pipeline=request.pipeline)
            run, code, reason = ended.run.id, ended.exit_code, ended.reason
            decision = ended.outcome.decision if ended.outcome else ""
            reason += f"\nlog: {ended.log}" if ended.run.failure else ""
        except FlywheelError as error:
            reason, code = str(error), error.exit_code
        except OSError as error:
            reason = f"{error.filename or root}: {error.strerror}"
        return RunEnded(name=request.name, run=run, decision=decision, reason=reason, exit_code=code)

    return start


@contextlib.contextmanager
def served(platform: Platform, port: int, say: Callable[[str], None]) -> Iterator[None]:
    """Have endpoints served all the while: begun again, at the same address, when what serves them is killed."""
    if platform.serving_namespace:
        yield
        return
    endpoints, ended = connect(platform).serving, threading.Event()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(platform, port))
        say(f"endpoints are served at {url}")

        def keep() -> None:
            while not ended.wait(LOOK_S):
                if endpoints.url(""):
                    continue
                say("nothing serves the endpoints any more: it is begun again")
                try:
                    stack.close()
                    stack.enter_context(serving(platform, urlsplit(url).port or port))
                except FlywheelError as error:
                    say(str(error))

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()


def sayer(as_json: bool) -> Callable[[str], None]:
    """Prints lines with their time, or JSON objects."""

    def say(text: str) -> None:
        line = " ".join(text.split())
        stamped = json.dumps({"at": time.time(), "what": line}) if as_json else f"{time.strftime('%H:%M:%S')} {line}"
        print(stamped, flush=True)

    return say
