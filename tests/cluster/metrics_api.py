"""A metrics API of the tests' own (metrics.k8s.io), as there is no metrics-server here: each pod uses what is said."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

from tests.servers import free_port

from .control import NODE_IP, ControlPlane
from .keys import Keys

GROUP = "metrics.k8s.io"
VERSION = f"{GROUP}/v1beta1"


class Usage:
    """How much CPU the pods of each app use, in thousandths of a core; others use nothing."""

    def __init__(self, api: client.ApiClient) -> None:
        self.core, self.by_app = client.CoreV1Api(api), dict[str, int]()

    def listed(self, namespace: str, selector: str) -> dict[str, Any]:
        """A PodMetricsList."""
        pods = self.core.list_namespaced_pod(namespace, label_selector=selector).items
        now = datetime.now(UTC).isoformat()  # a pod's first half minute is not believed
        items = [
            {
                "metadata": {"name": pod.metadata.name, "namespace": namespace, "labels": pod.metadata.labels},
                "timestamp": now,
                "window": "30s",
                "containers": [
                    {
                        "name": container.name,
                        "usage": {"cpu": f"{self.by_app.get(pod.metadata.labels.get('app', ''), 0)}m", "memory": "1Mi"},
                    }
                    for container in pod.spec.containers
                ],
            }
            for pod in pods
        ]
        return {"kind": "PodMetricsList", "apiVersion": VERSION, "metadata": {}, "items": items}


def _handler(usage: Usage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            parts = url.path.strip("/").split("/")
            if len(parts) == 6:  # apis/metrics.k8s.io/v1beta1/namespaces/NAME/pods
                document = usage.listed(parts[4], parse_qs(url.query).get("labelSelector", [""])[0])
            else:
                pods = {"name": "pods", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]}
                document = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION, "resources": [pods]}
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody listens."""

    return Handler


@contextmanager
def served(plane: ControlPlane, api: client.ApiClient) -> Iterator[Usage]:
    """Have the API server answer for metrics.k8s.io with what the usage says."""
    usage, port = Usage(api), free_port(NODE_IP)
    server = ThreadingHTTPServer((NODE_IP, port), _handler(usage))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Keys(plane.places.keys).certificate("metrics", "metrics", hosts=(NODE_IP,))
    context.load_cert_chain(plane.places.keys / "metrics.crt", plane.places.keys / "metrics.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service = {"name": "metrics", "namespace": "default"}
    objects = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": service,
            "spec": {"ports": [{"port": 443, "targetPort": port}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": service,
            "subsets": [{"addresses": [{"ip": NODE_IP}], "ports": [{"port": port}]}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"v1beta1.{GROUP}"},
            "spec": {
                "service": service,
                "group": GROUP,
                "version": "v1beta1",
                "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]
    plane.apply(objects)
    try:
        yield usage
    finally:
        plane.kubectl("delete", "apiservice", f"v1beta1.{GROUP}")
        plane.kubectl("delete", "service", "metrics", "-n", "default")
        server.shutdown()
        server.server_close()
