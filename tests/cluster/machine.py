"""A machine of the cluster that runs pods: its containerd and kubelet. Several live on this one, with one network."""

import json
import subprocess
from pathlib import Path

import yaml

from tests.waiting import wait_for

from . import images, programs
from .control import NODE_IP, PODS, ControlPlane

CGROUPS = Path("/sys/fs/cgroup")


class Machine:
    """One of them, beside a control plane that is up.

    Args:
        number: From 0 on, for ports and folders of its own.
    """

    def __init__(self, plane: ControlPlane, name: str, number: int) -> None:
        self.plane, self.places, self.processes = plane, plane.places, plane.processes
        self.name, self.number = name, number
        self.data, self.run = self.places.data / name, self.places.run / name
        self.socket = self.run / "containerd.sock"
        self.containerd, self.kubelet = f"containerd-{name}", f"kubelet-{name}"

    def up(self) -> None:
        """Start what does not run. `ready` tells when it can run pods."""
        self.data.mkdir(exist_ok=True)
        self.run.mkdir(exist_ok=True)
        for folder in self._cgroups():
            folder.mkdir(exist_ok=True)
        self._containerd()
        images.load(self.places, self.ctr, self.plane.say)
        self._kubelet()

    def ready(self) -> None:
        """Wait until it can run pods.

        Raises:
            TimeoutError: It cannot.
        """
        self.plane.ready(self.kubelet, self._is_ready, 60)

    def down(self) -> None:
        """End it. Pods outlive their kubelet: they should be gone by now."""
        self.processes.stop(self.kubelet)
        if self.processes.find(self.containerd):
            for task in self.ctr("tasks", "ls", "-q").split():
                self.ctr("tasks", "rm", "-f", task)
        self.processes.stop(self.containerd)
        for root in self._cgroups():
            for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            if root.exists():
                root.rmdir()
        unmount(self.data)
        unmount(self.run)

    def ctr(self, *arguments: str) -> str:
        """containerd's own client, in Kubernetes' namespace."""
        command = ["ctr", "-a", str(self.socket), "-n", "k8s.io", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _is_ready(self) -> bool:
        try:
            self.plane.kubectl("wait", "--for=condition=Ready", f"node/{self.name}", "--timeout=1s")
        except RuntimeError:
            return False
        return True

    def _cgroups(self) -> list[Path]:
        """A root of its own for all but the first one: a kubelet ends what it does not know below its root."""
        if not self.number:
            return []
        hierarchies = [CGROUPS] if (CGROUPS / "cgroup.procs").exists() else CGROUPS.iterdir()  # of version 2, or 1
        return [path / self.name for path in hierarchies if (path / "cgroup.procs").exists()]

    def _containerd(self) -> None:
        network = self.run / "cni"
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
        config = self.run / "containerd.toml"
        config.write_text(
            f"""version = 2
root = "{self.data}/containerd"
state = "{self.run}/containerd"
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
        self.processes.start(self.containerd, "containerd", "--config", config, "--log-level=warn")
        wait_for(self._containerd_answers, 30, "containerd")

    def _containerd_answers(self) -> bool:
        return subprocess.run(["ctr", "-a", str(self.socket), "version"], capture_output=True).returncode == 0

    def _kubelet(self) -> None:
        keys, kubeconfig = self.places.keys, f"--kubeconfig={self.places.kubeconfig}"
        (self.run / "resolv.conf").write_text("")
        config = self.run / "kubelet.yaml"
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
                    "cgroupRoot": f"/{self.name}" if self.number else "",
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
                    "resolvConf": str(self.run / "resolv.conf"),
                    "address": NODE_IP,
                    "port": 10250 + 100 * self.number,
                    "healthzPort": 10248 + 100 * self.number,
                    "readOnlyPort": 0,
                    "healthzBindAddress": "127.0.0.1",
                }
            )
        )
        self.processes.start(
            self.kubelet,
            programs.path(self.places, "kubelet"),
            kubeconfig,
            f"--config={config}",
            f"--root-dir={self.data}/kubelet",
            f"--cert-dir={self.data}/kubelet/pki",
            f"--hostname-override={self.name}",
            f"--node-ip={NODE_IP}",
        )


def unmount(folder: Path) -> None:
    """What containers and the kubelet left mounted below a folder, the deepest first."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=True)
