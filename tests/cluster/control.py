"""The control plane on this machine: API server, controllers, KubeRay, KServe with its webhooks, and a Gateway."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.waiting import wait_for

from . import programs
from .keys import Keys
from .places import Places
from .processes import Processes, answers

NODE, NODE_IP, PODS, SERVICES = "vm", "10.88.0.1", "10.88.0.0/16", "10.96.0.0/16"
GATEWAY, INGRESS = "127.0.0.1:8000", "kserve-ingress-gateway"
API = "https://127.0.0.1:6443"
KNATIVE = "knative-serving"
KUBERNETES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
ORDER = (*KUBERNETES, "kuberay", "kserve", "traefik", "knative")


class ControlPlane:
    """Brought up in a dozen seconds once everything is built; again at once if it is up."""

    def __init__(self, places: Places, say: Callable[[str], None]) -> None:
        self.places, self.say = places, say
        self.processes = Processes(places.run, places.logs)

    def up(self) -> None:
        """Start what does not run, and wait until all of it is ready.

        Raises:
            TimeoutError: A part does not get ready; its log's end is in the message.
        """
        programs.build(self.places, self.say)
        self._keys()
        _bridge()
        self._etcd()
        self.api_server()
        wait_for(lambda: self._kubectl_says("get", "--raw", "/readyz"), 90, "the API server")
        # Before the controller manager: what its garbage collector does not know at its start it learns 30 s later.
        self._definitions()
        self._controllers()
        self.apply(_kserve_objects(programs.folder_of(programs.KSERVE), Keys(self.places.keys).bundle))
        self.apply(_knative_objects())
        wait_for(lambda: self._kubectl_says("get", "serviceaccount", "default"), 60, "a service account")
        self.operators()
        for name, url in (("kuberay", "8281/readyz"), ("kserve", "8181/readyz"), ("traefik", "8383/ping")):
            self.ready(name, lambda url=url: answers(f"http://127.0.0.1:{url}"))
        programmed = ("-n", "kserve", "wait", "--for=condition=Programmed", f"gateway/{INGRESS}", "--timeout=0")
        self.ready("traefik", lambda: self._kubectl_says(*programmed))

    def down(self, wipe: bool) -> None:
        """End it; `wipe` drops its state too."""
        self.processes.stop(*(name for name in ORDER if name != "etcd"))
        self.processes.stop("etcd")
        if wipe:
            shutil.rmtree(self.places.data, ignore_errors=True)
            subprocess.run(["ip", "link", "del", "cni0"], capture_output=True)

    def ready(self, name: str, is_ready: Callable[[], bool], seconds: float = 90) -> None:
        """Wait for one of our processes."""
        try:
            wait_for(lambda: self.processes.find(name) is None or is_ready(), seconds, name)
        except TimeoutError as error:
            raise TimeoutError(f"{error}:\n{self.processes.tail(name)}") from None
        if self.processes.find(name) is None:
            raise RuntimeError(f"{name} ended:\n{self.processes.tail(name)}")

    def kubectl(self, *arguments: str, text: str = "") -> str:
        """Run kubectl as the administrator."""
        done = subprocess.run(
            [programs.path(self.places, "kubectl"), f"--kubeconfig={self.places.kubeconfig}", *arguments],
            input=text,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments[:4])} failed: {done.stderr.strip()}")
        return done.stdout

    def apply(self, objects: list[dict[str, Any]]) -> None:
        """Make objects so, as their only owner."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=yaml.safe_dump_all(objects))

    def _kubectl_says(self, *arguments: str) -> bool:
        try:
            self.kubectl(*arguments)
        except RuntimeError:
            return False
        return True

    def _start(self, name: str, *flags: str, env: dict[str, str] | None = None) -> None:
        self.processes.start(name, programs.path(self.places, name), *flags, env=env)

    def _keys(self) -> None:
        keys = Keys(self.places.keys)
        services = (
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        )
        keys.certificate(
            "apiserver", "kube-apiserver", hosts=("localhost", *services, "127.0.0.1", "10.96.0.1", NODE_IP)
        )
        keys.certificate("admin", "admin", "system:masters")
        keys.certificate("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
        keys.certificate("kubelet", f"system:node:{NODE}", "system:nodes", (NODE, NODE_IP, "127.0.0.1"))
        keys.certificate("webhook", "kserve-webhook", hosts=("localhost", "127.0.0.1"))
        keys.pair("tokens")
        keys.kubeconfig(self.places.kubeconfig, API, "admin")

    def _etcd(self) -> None:
        self._start(
            "etcd",
            "--name=one",
            f"--data-dir={self.places.data}/etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=one=http://127.0.0.1:2380",
        )

    def api_server(self) -> None:
        """Start the API server, unless it is at work."""
        keys = self.places.keys
        self._start(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",  # pods reach it by the bridge's address
            "--secure-port=6443",
            f"--advertise-address={NODE_IP}",
            f"--tls-cert-file={keys}/apiserver.crt",
            f"--tls-private-key-file={keys}/apiserver.key",
            f"--client-ca-file={keys}/ca.crt",
            "--anonymous-auth=false",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}/tokens.pub",
            f"--service-account-signing-key-file={keys}/tokens.key",
            f"--service-cluster-ip-range={SERVICES}",
            f"--kubelet-client-certificate={keys}/kubelet-client.crt",
            f"--kubelet-client-key={keys}/kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--endpoint-reconciler-type=master-count",
        )

    def _definitions(self) -> None:
        files = [flag for path in _definitions() for flag in ("-f", str(path))]
        self.kubectl("apply", "--server-side", "--force-conflicts", *files)
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", *files)

    def _controllers(self) -> None:
        keys = self.places.keys
        common = (f"--kubeconfig={self.places.kubeconfig}", "--leader-elect=false", "--bind-address=127.0.0.1")
        self._start(
            "kube-controller-manager",
            *common,
            f"--service-account-private-key-file={keys}/tokens.key",
            f"--root-ca-file={keys}/ca.crt",
            f"--cluster-signing-cert-file={keys}/ca.crt",
            f"--cluster-signing-key-file={keys}/ca.key",
            "--use-service-account-credentials=false",
            "--allocate-node-cidrs=false",
            "--kube-api-qps=100",
            "--kube-api-burst=200",
        )
        self._start("kube-scheduler", *common)

    def operators(self) -> None:
        """Start KubeRay, KServe and the gateway, unless they are at work."""
        us = {"KUBECONFIG": str(self.places.kubeconfig)}
        served = self.places.run / "kserve" / "k8s-webhook-server" / "serving-certs"  # where controller-runtime looks
        served.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.places.keys / "webhook.crt", served / "tls.crt")
        shutil.copyfile(self.places.keys / "webhook.key", served / "tls.key")
        self._start(
            "kuberay",
            "--enable-leader-election=false",
            "--use-kubernetes-proxy",
            "--metrics-addr=127.0.0.1:8280",
            "--health-probe-bind-address=127.0.0.1:8281",
            env=us,
        )
        self._start(
            "kserve",
            "--metrics-addr=127.0.0.1:8180",
            "--health-probe-addr=127.0.0.1:8181",
            "--webhook-port=9443",
            env=us | {"TMPDIR": str(self.places.run / "kserve"), "POD_NAMESPACE": "kserve"},
        )
        self._start(
            "traefik",
            f"--entrypoints.web.address={GATEWAY}",
            "--entrypoints.traefik.address=127.0.0.1:8383",
            "--ping=true",
            "--metrics.prometheus=true",
            "--log.level=INFO",
            "--providers.kubernetesgateway=true",
            "--providers.kubernetesgateway.throttleduration=0s",
            "--providers.kubernetesgateway.statusaddress.ip=127.0.0.1",
            "--providers.kubernetescrd=true",
            "--providers.kubernetescrd.throttleduration=0s",
            "--providers.providersthrottleduration=0s",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
            env=us,
        )


def _bridge() -> None:
    """The bridge of the pods. The API server is reached at its address, so it must be there first. Needs root."""
    if os.geteuid() != 0 or subprocess.run(["ip", "link", "show", "cni0"], capture_output=True).returncode == 0:
        return
    for command in (
        # With an address of its own: else it takes its lowest port's, and when that pod ends the others wait for ARP.
        ["ip", "link", "add", "cni0", "address", "02:00:0a:58:00:01", "type", "bridge"],
        ["ip", "addr", "add", f"{NODE_IP}/16", "dev", "cni0"],
        ["ip", "link", "set", "cni0", "up"],
    ):
        subprocess.run(command, check=True)


def _definitions() -> Iterator[Path]:
    """The custom resource definitions, as their modules bring them."""
    kserve, kuberay = programs.folder_of(programs.KSERVE), programs.folder_of(programs.KUBERAY)
    yield from kserve.glob("config/crd/full/serving.kserve.io_*.yaml")
    yield from kserve.glob("config/crd/full/clusterstoragecontainer/serving*.yaml")
    yield from kuberay.glob("config/crd/bases/*.yaml")
    yield from programs.folder_of(programs.KNATIVE).glob("config/core/300-resources/*.yaml")
    networking = programs.folder_of(programs.KNATIVE_NETWORKING) / "config"
    yield from (path for path in networking.glob("*.yaml") if path.name != "config-network.yaml")
    yield programs.folder_of(programs.KNATIVE_CACHING) / "config" / "image.yaml"
    operator = programs.folder_of(programs.PROMETHEUS_OPERATOR) / "example/prometheus-operator-crd"
    yield from (operator / f"monitoring.coreos.com_{kind}.yaml" for kind in ("podmonitors", "prometheusrules"))
    yield from programs.folder_of(programs.GATEWAY_API).glob("config/crd/standard/*.yaml")
    yield from programs.folder_of(programs.ARGO).glob("manifests/base/crds/minimal/argoproj*.yaml")
    reference = "docs/content/reference/dynamic-configuration"
    yield programs.folder_of(programs.TRAEFIK) / reference / "kubernetes-crd-definition-v1.yml"


def _kserve_objects(module: Path, authority: str) -> list[dict[str, Any]]:
    """KServe's configuration and webhooks for a manager that is a process here, and the Gateway."""
    config = _documents(module / "config/configmap/inferenceservice.yaml")[0]
    config["metadata"]["namespace"] = "kserve"
    config["data"].pop("_example", None)
    ingress = json.loads(config["data"]["ingress"]) | {
        "enableGatewayApi": True,
        "kserveIngressGateway": f"kserve/{INGRESS}",
        "disableIstioVirtualHost": True,
        "ingressDomain": "example.com",
    }
    small = {"cpuLimit": "1", "memoryLimit": "1Gi", "cpuRequest": "50m", "memoryRequest": "128Mi"}
    config["data"] |= {
        "ingress": json.dumps(ingress),
        "deploy": json.dumps({"defaultDeploymentMode": "Standard"}),
        "inferenceService": json.dumps({"resource": small}),
    }
    webhooks = _documents(module / "config/webhook/manifests.yaml")
    for document in webhooks:
        document["metadata"].pop("creationTimestamp", None)
        for webhook in document["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:9443{path}", "caBundle": authority}
            webhook["failurePolicy"] = "Fail"
    listener = {"name": "http", "protocol": "HTTP", "port": int(GATEWAY.rpartition(":")[2])}
    gateway = "gateway.networking.k8s.io/v1"
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kserve"}},
        config,
        {
            "apiVersion": gateway,
            "kind": "GatewayClass",
            "metadata": {"name": "traefik"},
            "spec": {"controllerName": "traefik.io/gateway-controller"},
        },
        {
            "apiVersion": gateway,
            "kind": "Gateway",
            "metadata": {"name": INGRESS, "namespace": "kserve"},
            "spec": {
                "gatewayClassName": "traefik",
                "listeners": [listener | {"allowedRoutes": {"namespaces": {"from": "All"}}}],
            },
        },
        *webhooks,
    ]


def _knative_objects() -> list[dict[str, Any]]:
    """Knative's settings, all of them its defaults: KServe asks for some of them too."""
    paths = sorted(programs.folder_of(programs.KNATIVE).glob("config/core/configmaps/*.yaml"))
    paths.append(programs.folder_of(programs.KNATIVE_NETWORKING) / "config" / "config-network.yaml")
    settings = [document for path in paths for document in _documents(path)]
    for document in settings:
        document["metadata"] = {"name": document["metadata"]["name"], "namespace": KNATIVE}
        document["data"] = {key: value for key, value in document.get("data", {}).items() if key != "_example"}
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": KNATIVE}}, *settings]


def _documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]
