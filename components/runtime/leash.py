"""Run a module as a job that cannot outlive its parent: `python -m …leash DEADLINE_S MODULE SPEC_URI`.

The parent holds the other end of stdin. A pipe closes however the parent dies, on every system; the whole process
group then goes with it. A read of stdin costs nothing while the job works.
"""

import os
import runpy
import signal
import sys
import threading


def _watch(deadline_s: float) -> None:
    end = threading.Timer(deadline_s, os.killpg, (0, signal.SIGKILL))
    end.daemon = True
    end.start()
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    deadline, module = float(sys.argv[1]), sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    threading.Thread(target=_watch, args=(deadline,), daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
