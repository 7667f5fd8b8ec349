"""A node that runs real pods on this machine: containerd, kubelet, kube-proxy, CoreDNS, and a registry of images.

Needs root and PACKAGES of Debian's.
"""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.waiting import wait_for

from . import images, programs
from .control import NODE, NODE_IP, PODS, ControlPlane
from .processes import answers

NEEDED = (
    *("containerd", "ctr", "runc", "iptables", "conntrack", "socat", "ebtables", "ethtool"),
    *("debootstrap", "docker-registry", "buildah", "prometheus"),
)
PACKAGES = (
    "containerd containernetworking-plugins iptables conntrack socat ebtables ethtool debootstrap docker-registry "
    "buildah iproute2 prometheus"
)


class Node:
    """One node beside a control plane that is up."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.places, self.processes = plane, plane.places, plane.processes
        self.socket = self.places.run / "containerd.sock"

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
        self._containerd()
        self._registry()
        images.load(self.places, self.ctr, self.plane.say)
        self._dns()
        self._kubelet()
        self.plane.ready("coredns", lambda: answers("http://127.0.0.1:8382/ready"), 30)
        self.plane.ready("kubelet", self._is_ready, 60)

    def down(self) -> None:
        """Remove all pods while their kubelet lives (they outlive it), then end it."""
        if self.processes.find("kubelet") and self.processes.find("kube-apiserver"):
            for name in ("traefik", "kserve", "kuberay", "kube-controller-manager", "kube-scheduler"):
                self.processes.stop(name)  # nobody is left to make new ones
            self.plane.kubectl("delete", "pods", "-A", "--all", "--grace-period=1", "--timeout=60s")
        for name in ("kube-proxy", "kubelet", "coredns"):
            self.processes.stop(name)
        if self.processes.find("containerd"):
            for task in self.ctr("tasks", "ls", "-q").split():
                self.ctr("tasks", "rm", "-f", task)
        for name in ("containerd", "registry"):
            self.processes.stop(name)
        if os.geteuid() == 0:
            subprocess.run([programs.path(self.places, "kube-proxy"), "--cleanup"], capture_output=True)
            _remove_rules()
            _unmount(self.places.root)

    def ctr(self, *arguments: str) -> str:
        """containerd's own client, in Kubernetes' namespace."""
        command = ["ctr", "-a", str(self.socket), "-n", "k8s.io", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _is_ready(self) -> bool:
        try:
            self.plane.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=1s")
        except RuntimeError:
            return False
        return True

    def _containerd(self) -> None:
        network = self.places.run / "cni"
        network.mkdir(exist_ok=True)
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": f"{self.places.data}/cni",
                "routes": [{"dst": "0.0.0.0/0"}],
                "ranges": [[{"subnet": PODS, "gateway": NODE_IP}]],
            },
        }
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        chain = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}
        (network / "10-bridge.conflist").write_text(json.dumps(chain))
        config = self.places.run / "containerd.toml"
        config.write_text(
            f"""version = 2
root = "{self.places.data}/containerd"
state = "{self.places.run}/containerd"
oom_score = 0
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{network}"
"""
        )
        self.processes.start("containerd", "containerd", "--config", config, "--log-level=warn")
        wait_for(self._containerd_answers, 30, "containerd")

    def _containerd_answers(self) -> bool:
        return subprocess.run(["ctr", "-a", str(self.socket), "version"], capture_output=True).returncode == 0

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

    def _kubelet(self) -> None:
        keys, kubeconfig = self.places.keys, f"--kubeconfig={self.places.kubeconfig}"
        (self.places.run / "resolv.conf").write_text("")
        config = self.places.run / "kubelet.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "authentication": {
                        "anonymous": {"enabled": False},
                        "webhook": {"enabled": False},
                        "x509": {"clientCAFile": f"{keys}/ca.crt"},
                    },
                    "authorization": {"mode": "AlwaysAllow"},
                    "tlsCertFile": f"{keys}/kubelet.crt",
                    "tlsPrivateKeyFile": f"{keys}/kubelet.key",
                    "cgroupDriver": "cgroupfs",
                    "containerRuntimeEndpoint": f"unix://{self.socket}",
                    "failSwapOn": False,
                    "failCgroupV1": False,
                    "oomScoreAdj": 0,
                    "maxOpenFiles": 20000,
                    "imageGCHighThresholdPercent": 100,
                    "imageGCLowThresholdPercent": 99,
                    "evictionHard": {
                        "memory.available": "100Mi",
                        "nodefs.available": "1%",
                        "imagefs.available": "1%",
                        "nodefs.inodesFree": "1%",
                        "imagefs.inodesFree": "1%",
                    },
                    "clusterDNS": [NODE_IP],
                    "clusterDomain": "cluster.local",
                    "resolvConf": str(self.places.run / "resolv.conf"),
                    "address": NODE_IP,
                    "readOnlyPort": 0,
                    "healthzBindAddress": "127.0.0.1",
                }
            )
        )
        self.processes.start(
            "kubelet",
            programs.path(self.places, "kubelet"),
            kubeconfig,
            f"--config={config}",
            f"--root-dir={self.places.data}/kubelet",
            f"--cert-dir={self.places.data}/kubelet/pki",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_IP}",
        )
        self.processes.start(
            "kube-proxy",
            programs.path(self.places, "kube-proxy"),
            kubeconfig,
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


def _unmount(folder: Path) -> None:
    """What containers and the kubelet left mounted below a folder, the deepest first."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=True)
