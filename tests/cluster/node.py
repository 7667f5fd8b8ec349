"""What runs real pods here: machines, kube-proxy, CoreDNS, and a registry of images.

Needs root and PACKAGES of Debian's.
"""

import os
import shlex
import shutil
import subprocess

import yaml

from . import images, programs
from .control import NODE, NODE_IP, PODS, ControlPlane
from .machine import Machine, unmount
from .processes import answers

NEEDED = (
    *("containerd", "ctr", "runc", "iptables", "conntrack", "socat", "ebtables", "ethtool"),
    *("debootstrap", "docker-registry", "buildah", "prometheus"),
)
PACKAGES = (
    "containerd containernetworking-plugins iptables conntrack socat ebtables ethtool debootstrap docker-registry "
    "buildah iproute2 prometheus"
)


SECOND = "second"


class Node:
    """One node beside a control plane that is up, and on demand a second one."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.places, self.processes = plane, plane.places, plane.processes
        self.machine, self.second = (Machine(plane, name, number) for number, name in enumerate((NODE, SECOND)))

    def up(self) -> None:
        """Start what does not run, and wait until the node is ready.

        Raises:
            RuntimeError: A Debian package is missing.
            TimeoutError: A part does not get ready.
        """
        missing = [name for name in NEEDED if not shutil.which(name)]
        if missing:
            raise RuntimeError(f"{', '.join(missing)} not found; next: apt-get install -y {PACKAGES}")
        subprocess.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
        self._registry()
        self._dns()
        self._proxy()
        self.machine.up()
        self.plane.ready("coredns", lambda: answers("http://127.0.0.1:8382/ready"), 30)
        self.machine.ready()

    def down(self) -> None:
        """Remove all pods while their kubelets live (they outlive it), then end them."""
        if self.processes.find(self.machine.kubelet) and self.processes.find("kube-apiserver"):
            # nobody is left to make new ones
            self.processes.stop("traefik", "kserve", "kuberay", "kube-controller-manager", "kube-scheduler")
            self.plane.kubectl("delete", "pods", "-A", "--all", "--grace-period=1", "--timeout=60s")
        for machine in (self.second, self.machine):
            machine.down()
        self.processes.stop("kube-proxy", "coredns", "registry")
        if os.geteuid() == 0:
            subprocess.run([programs.path(self.places, "kube-proxy"), "--cleanup"], capture_output=True)
            _remove_rules()
            unmount(self.places.root)  # what building images leaves too

    def _registry(self) -> None:
        config = self.places.run / "registry.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "version": 0.1,
                    "log": {"level": "warn", "accesslog": {"disabled": True}},
                    "storage": {"filesystem": {"rootdirectory": str(self.places.images / "registry")}},
                    "http": {"addr": images.REGISTRY},
                }
            )
        )
        self.processes.start("registry", "docker-registry", "serve", config)
        self.plane.ready("registry", lambda: answers(f"http://{images.REGISTRY}/v2/"), 30)

    def _dns(self) -> None:
        corefile = self.places.run / "Corefile"
        corefile.write_text(
            f""".:53 {{
    bind {NODE_IP}
    errors
    health 127.0.0.1:8381
    ready 127.0.0.1:8382
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {self.places.kubeconfig} local
        pods insecure
        ttl 1
    }}
}}
"""
        )
        self.processes.start("coredns", programs.path(self.places, "coredns"), "-conf", corefile)

    def _proxy(self) -> None:
        self.processes.start(
            "kube-proxy",
            programs.path(self.places, "kube-proxy"),
            f"--kubeconfig={self.places.kubeconfig}",
            f"--hostname-override={NODE}",
            "--proxy-mode=iptables",
            "--masquerade-all",
            f"--cluster-cidr={PODS}",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
        )


def _remove_rules() -> None:
    """The chains that the kubelet leaves, and the rules that lead there."""
    for table in ("filter", "nat", "mangle"):
        done = subprocess.run(["iptables-save", "-t", table], capture_output=True, text=True)
        lines = done.stdout.splitlines()
        for line in lines:
            if line.startswith("-A") and "KUBE-" in line:
                subprocess.run(["iptables", "-t", table, "-D", *shlex.split(line)[1:]], check=True)
        for line in lines:
            if line.startswith(":KUBE-"):
                subprocess.run(["iptables", "-t", table, "-X", line[1:].split()[0]], check=True)
