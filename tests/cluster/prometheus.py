"""Prometheus on this machine: it scrapes model servers in pods, as manifests/components/monitoring asks, and Traefik.

Debian builds it without the discovery of Kubernetes' pods, so a thread here looks for them and writes them down.
"""

import json
import shutil
import threading

import urllib3
import yaml
from kfp_flywheel.components.runtime.adapters.kserve.build import ENDPOINT
from kubernetes import client, config

from .control import ControlPlane
from .processes import answers

ADDRESS = "127.0.0.1:9090"
TRAEFIK = "127.0.0.1:8383"
EVERY_S = 2
"""Longer than a look, as on any real cluster: pods are scraped at different looks."""


class Prometheus:
    """One beside a control plane that is up."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.data = plane, plane.places.data / "prometheus"
        self.targets = plane.places.data / "targets.json"
        self._over = threading.Event()

    def up(self) -> None:
        """Start it, unless it is at work, and wait until it answers."""
        self.targets.write_text("[]")
        pods = {"job_name": "models", "file_sd_configs": [{"files": [str(self.targets)]}]}
        gateway = {"job_name": "traefik", "static_configs": [{"targets": [TRAEFIK]}]}
        settings = self.plane.places.run / "prometheus.yaml"
        every = {"scrape_interval": f"{EVERY_S}s", "scrape_timeout": f"{EVERY_S}s"}
        settings.write_text(yaml.safe_dump({"global": every, "scrape_configs": [pods, gateway]}))
        self._over.clear()
        threading.Thread(target=self._discover, daemon=True).start()
        self.start()

    def start(self) -> None:
        """Start the process alone: what it is to scrape is looked for already."""
        self.plane.processes.start(
            "prometheus",
            "prometheus",
            f"--config.file={self.plane.places.run / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self.data}",
            f"--web.listen-address={ADDRESS}",
            "--log.level=warn",
        )
        self.plane.ready("prometheus", lambda: answers(f"http://{ADDRESS}/-/ready"), 30)

    def stop(self) -> None:
        """End the process alone."""
        self.plane.processes.stop("prometheus")

    def forget(self) -> None:
        """Drop what it knows; it must not run."""
        shutil.rmtree(self.data, ignore_errors=True)

    def down(self, wipe: bool = False) -> None:
        """End it; `wipe` drops what it knows."""
        self._over.set()
        self.stop()
        if wipe:
            self.forget()

    def _discover(self) -> None:
        core, before = client.CoreV1Api(config.new_client_from_config(str(self.plane.places.kubeconfig))), ""
        while not self._over.wait(0.3):
            try:
                pods = core.list_pod_for_all_namespaces(label_selector=ENDPOINT).items
            except (client.ApiException, urllib3.exceptions.HTTPError):  # a test may have it away
                continue
            found = [
                {
                    "targets": [f"{pod.status.pod_ip}:8080"],
                    "labels": {"namespace": pod.metadata.namespace, "pod": pod.metadata.name},
                }
                for pod in pods
                if pod.status.phase == "Running" and pod.status.pod_ip
            ]
            if (text := json.dumps(found)) != before:
                new = self.targets.with_suffix(".new")
                new.write_text(text)
                new.rename(self.targets)
                before = text
