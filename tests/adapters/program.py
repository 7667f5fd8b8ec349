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
    if what == "count":
        for number in range(80):
            print(f"line {number}", flush=True)
            time.sleep(0.25)
    if what == "eat":
        import ray

        ray.init()
        ray.get(ray.remote(max_retries=0, num_cpus=1)(_eat).remote())
    print("done", flush=True)


def _eat() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(b"x") * (32 << 20))
        time.sleep(0.1)  # slower than Ray looks, or the kernel is first, and says less


if __name__ == "__main__":
    main(sys.argv[1])
