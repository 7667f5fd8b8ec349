"""`python -m tests.cluster build | up | down | status`: a real Kubernetes on this machine."""

import argparse
import os
import time

from . import programs
from .control import ControlPlane
from .node import Node
from .places import Places
from .prometheus import Prometheus


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("command", choices=["build", "up", "down", "status"])
    parser.add_argument("--no-node", action="store_true", help="without the node that runs pods (needs no root)")
    parser.add_argument("--wipe", action="store_true", help="down: drop the cluster's state too")
    given = parser.parse_args()
    started = time.monotonic()
    plane = ControlPlane(Places.usual(), lambda line: print(f"cluster | {line}", flush=True))
    node = Node(plane)
    if given.command == "build":
        programs.build(plane.places, plane.say)
    elif given.command == "up":
        plane.up()
        if not given.no_node and os.geteuid() == 0:
            node.up()
        print(f"cluster | is up after {time.monotonic() - started:.1f} s; export KUBECONFIG={plane.places.kubeconfig}")
    elif given.command == "down":
        Prometheus(plane).down(given.wipe)
        node.down()
        plane.down(given.wipe)
    for name in plane.processes.names():
        process = plane.processes.find(name)
        print(f"{name:24} {process.memory_info().rss / 2**20:6.0f} MiB" if process else f"{name:24} dead")


if __name__ == "__main__":
    main()
