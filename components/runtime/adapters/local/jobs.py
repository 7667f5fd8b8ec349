"""Child processes as jobs."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable

from ...errors import Conflict, JobFailed
from ...ports import JobSpec

GRACE_S = 10.0


class LocalJobs:
    """`local://`. A job is a child process whose stdin is a pipe that we hold: when we are gone, however, it ends too.

    So there is nothing to adopt: a job is run again and continues from its own checkpoints.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[str, subprocess.Popen[str]]] = {}

    def submit(self, spec: JobSpec) -> None:
        if spec.name in self._running:
            if self._running[spec.name][0] != spec.spec_hash:
                raise Conflict(f"job {spec.name} is at work with another specification.")
            return
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kfp_flywheel.components.runtime.leash",
                str(spec.deadline_s),
                spec.module,
                spec.spec_uri,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=os.environ | spec.env,
        )
        self._running[spec.name] = (spec.spec_hash, process)

    def wait(self, name: str, on_line: Callable[[str], None]) -> None:
        process = self._running[name][1]
        assert process.stdout is not None
        last: deque[str] = deque(maxlen=20)
        try:
            with process.stdout as lines:
                for line in lines:
                    last.append(line.rstrip())
                    on_line(line.rstrip())
            code = process.wait()
        finally:
            self.cancel(name)
        if code:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise JobFailed(f"job {name} ended with {how}; its last lines:\n" + "\n".join(last))

    def cancel(self, name: str) -> None:
        _, process = self._running.pop(name, ("", None))
        if process is None:
            return
        process.terminate()  # the leash hands it on; what the job holds outside this machine is given back
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the leash ends everything that is left
            process.wait()
