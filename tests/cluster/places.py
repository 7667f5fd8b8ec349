"""Where the cluster keeps its things: one folder outside the repository. `FLYWHEEL_CLUSTER_DIR` names another one."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Programs, sources and images are kept for the next time; keys, data, logs and runtime are of one cluster."""

    root: Path

    @classmethod
    def usual(cls) -> "Places":
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        return cls(Path(os.environ.get("FLYWHEEL_CLUSTER_DIR", cache / "kfp-flywheel" / "cluster")))

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def programs(self) -> Path:
        return self._folder("programs")

    @property
    def sources(self) -> Path:
        return self._folder("sources")

    @property
    def images(self) -> Path:
        return self._folder("images")

    @property
    def keys(self) -> Path:
        return self._folder("keys")

    @property
    def data(self) -> Path:
        return self._folder("data")

    @property
    def logs(self) -> Path:
        return self._folder("logs")

    @property
    def run(self) -> Path:
        return self._folder("run")

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"
