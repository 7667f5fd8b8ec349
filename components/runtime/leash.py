"""Run a module as a job that cannot outlive its parent: `python -m …leash DEADLINE_S MODULE ARGUMENT…`.

The parent holds the other end of stdin. A pipe closes however the parent dies, on every system; the job is then killed.
However the job ends, everything that it started ends with it, daemons in sessions of their own too (Ray starts such),
and its temporary files are removed: it runs in a forked child, and this process does nothing but watch.
"""

import contextlib
import ctypes
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36
SHORT = 28  # the path of a Unix socket has 107 characters at most, and Ray's take 65 and more below the job's folder


def _adopt_orphans() -> None:
    """Become the parent of every process below whose own parent ends (Linux): none can leave the tree."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _below() -> list[int]:
    """Every living process that descends from this one, or is in its group."""
    me, group, parents, found = os.getpid(), os.getpgrp(), {}, set()
    if sys.platform == "linux":
        rows = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                # The name, in parentheses, may hold anything; after it: state, parent, group.
                head, _, tail = path.read_text(errors="replace").rpartition(")")
                rows.append([head.split(" ", 1)[0], *tail.split()[1:3]])
    else:
        listing = subprocess.run(["ps", "-axo", "pid=,ppid=,pgid="], capture_output=True, text=True, check=True)
        rows = [line.split() for line in listing.stdout.splitlines()]
    for pid, parent, its_group in (map(int, row) for row in rows):
        parents[pid] = parent
        if its_group == group:
            found.add(pid)
    for pid in parents:
        above = pid
        while above in parents and above != me:
            above = parents[above]
        if above == me:
            found.add(pid)
    return sorted(found - {me})


def _end_all() -> None:
    """Kill all that is left below, until there is nothing to wait for."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in _below():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _work(module: str, arguments: list[str], lifeline: int) -> NoReturn:
    """Be the job. The lifeline ends when the watching process is gone, however it ended."""

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def main(deadline_s: float, module: str, arguments: list[str]) -> None:
    """Watch the job to its end, and end as it ended."""
    _adopt_orphans()
    base = tempfile.gettempdir()
    scratch = tempfile.mkdtemp(prefix="fw-", dir=base if len(base) <= SHORT else "/tmp")  # noqa: S108
    os.environ["TMPDIR"] = scratch
    tempfile.tempdir = None
    lifeline, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        _work(module, arguments, lifeline)
    os.close(lifeline)

    def send(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    def watch() -> None:
        while os.read(0, 1):
            pass
        send(signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _: send(got))
    end = threading.Timer(min(deadline_s, threading.TIMEOUT_MAX), send, (signal.SIGKILL,))
    end.daemon = True
    end.start()
    threading.Thread(target=watch, daemon=True).start()
    status = None
    while status is None:
        pid, how = os.waitpid(-1, 0)
        status = how if pid == child else None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _end_all()
    shutil.rmtree(scratch, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
