"""The manifests as somebody installs them: an overlay of one's own upon one of ours, and accounts' own kubeconfigs."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from .control import ControlPlane
from .fixtures import REPO
from .keys import Keys

MANIFESTS = REPO / "manifests"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (MANIFESTS / "components").iterdir())
API = "https://localhost:6443"
"""The API server by another name than the administrator's, by which an account's requests are told from others."""
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
Grant = tuple[str, str, str]
"""Group, resource, verb."""


def overlay(folder: Path, name: str, namespace: str, *components: str, **more: Any) -> Path:
    """A folder for `kubectl apply -k`: one of our overlays with another namespace, and components that it lacks."""
    folder.mkdir(exist_ok=True)
    ours, theirs = os.path.relpath(MANIFESTS, folder), (MANIFESTS / f"overlays/{name}/kustomization.yaml").read_text()
    lacks = [component for component in components if f"components/{component}\n" not in theirs]
    settings = {
        "resources": [f"{ours}/overlays/{name}"],
        "components": [f"{ours}/components/{component}" for component in [*lacks, "release"]],
        "namespace": namespace,
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(settings))
    return folder


def rendered(plane: ControlPlane, folder: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(plane.kubectl("kustomize", str(folder))))


def granted(role: dict[str, Any]) -> set[Grant]:
    """All that a role allows."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@contextmanager
def acting_as(plane: ControlPlane, namespace: str, account: str, folder: Path) -> Iterator[set[Grant]]:
    """What connects meanwhile is a service account; gives what it asks the API server for."""
    config = {
        "clusters": [
            {"name": "c", "cluster": {"server": API, "certificate-authority-data": Keys(plane.places.keys).bundle}}
        ],
        "users": [{"name": "u", "user": {"token": plane.kubectl("create", "token", account, "-n", namespace).strip()}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    heard = _Heard()
    log = logging.getLogger("urllib3.connectionpool")
    before, log.level = log.level, logging.DEBUG
    log.addHandler(heard)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
            yield heard.used
    finally:
        log.removeHandler(heard)
        log.level = before


class _Heard(logging.Handler):
    """urllib3 writes a line for each request."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.used: set[Grant] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if not record.msg.startswith('%s://%s:%s "%s') or not isinstance(record.args, tuple):
            return
        scheme, host, port, method, path = map(str, record.args[:5])
        if f"{scheme}://{host}:{port}" == API and "/namespaces/" in path:
            self.used.add(_grant(method, path))


def _grant(method: str, url: str) -> Grant:
    """What a request asks for: /apis/GROUP/VERSION/namespaces/NAMESPACE/RESOURCE/NAME/SUBRESOURCE."""
    split = urlsplit(url)
    root, _, rest = split.path.partition("/namespaces/")
    _, resource, *named = rest.split("/")
    group = root.split("/")[2] if root.startswith("/apis/") else ""
    watches = "true" in str(parse_qs(split.query).get("watch", "")).lower()
    verb = VERBS.get(method) or ("watch" if watches else "get" if named else "list")
    return group, "/".join([resource, *named[1:]]), verb
