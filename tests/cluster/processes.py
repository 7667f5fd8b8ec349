"""Processes in the background that outlive the command that started them, found again by pid and time of start."""

import contextlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil

STOP_S = 10.0


class Processes:
    """What runs, one file each in a folder; logs beside it in another."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self.logs = folder, logs

    def find(self, name: str) -> psutil.Process | None:
        """The process of this name, if it is alive: a pid alone may be somebody else's by now."""
        try:
            pid, started = json.loads((self.folder / f"{name}.json").read_text())
            process = psutil.Process(pid)
            living = process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if living else None

    def start(self, name: str, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Start it, unless it is at work."""
        if self.find(name):
            return
        # By a shell that ends at once: it is nobody's child, and no test takes it for one that was left behind.
        shell = ["sh", "-c", 'setsid "$@" </dev/null >>"$LOG" 2>&1 & echo $!', "sh", *map(str, command)]
        environment = os.environ | dict(env or {}) | {"LOG": str(self.logs / f"{name}.log")}
        pid = int(subprocess.run(shell, env=environment, check=True, stdout=subprocess.PIPE).stdout)
        try:
            record = [pid, psutil.Process(pid).create_time()]
        except psutil.NoSuchProcess:
            record = [pid, 0]  # its log tells why
        (self.folder / f"{name}.json").write_text(json.dumps(record))

    def stop(self, *names: str) -> None:
        """End some at the same time, by force after a while. Unknown names are no error."""
        living = [process for process in map(self.find, names) if process]
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            _, living = psutil.wait_procs(living, STOP_S)
        for name in names:
            (self.folder / f"{name}.json").unlink(missing_ok=True)

    def names(self) -> list[str]:
        """All that were started and not stopped, dead or alive."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of its log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join((self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])
        return ""


def answers(url: str) -> bool:
    """Whether an address answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
