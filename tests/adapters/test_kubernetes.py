"""What is said of a cluster that is not there."""

import json
from pathlib import Path

import pytest
from kfp_flywheel.components.runtime.adapters import kubernetes
from kfp_flywheel.components.runtime.errors import PlatformError

from tests.servers import free_port


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    config = {
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(kubernetes, "FIRST_S", 0.1)
    with pytest.raises(PlatformError, match=f"{address} does not answer: .*Connection refused.*kubectl cluster-info"):
        kubernetes.connect()


def test_without_a_cluster_the_message_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(PlatformError, match=r"no cluster is known: .*\. Next: set KUBECONFIG"):
        kubernetes.connect()
