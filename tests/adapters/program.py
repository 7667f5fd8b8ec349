"""A job for the tests of the Jobs port: `python -m tests.adapters.program WHAT`."""

import subprocess
import sys
import time


def main(what: str) -> None:
    """Do what the test asks for."""
    print("at work", flush=True)
    if what == "fail":
        print("the reason stands here", flush=True)
        raise SystemExit(3)
    if what == "hang":
        # A grandchild in a process group of its own, as Ray has them.
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"pids {child.pid}", flush=True)
        time.sleep(600)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
