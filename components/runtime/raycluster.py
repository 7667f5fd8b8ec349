"""Ray for one job: the cluster at RAY_ADDRESS, or a small one on this machine that ends with us."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import PlatformError, UserError

SOCKET_PATH = 40


def fits(workers: int, cpus_per_worker: int) -> None:
    """Refuse more workers than this machine has CPUs for, where Ray runs on it.

    Raises:
        UserError: Names the number and the limit.
    """
    cpus, wanted = os.cpu_count() or 1, workers * cpus_per_worker
    if wanted > cpus and not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"workers × cpus_per_worker is {wanted}, and this machine has {cpus} CPUs.",
            f"try -p workers=1 -p cpus_per_worker={cpus}",
        )


@contextmanager
def ray_up(cpus: int, gpus: int = 0, shared_mb: int = 128) -> Iterator[str]:
    """Start Ray, or connect to it.

    Args:
        shared_mb: Memory that its processes share, in MiB; of a local one.

    Yields:
        Of a local one, a folder that ends with it; of a cluster, nothing.

    Raises:
        PlatformError: Ray does not come up.
    """
    address = os.environ.get("RAY_ADDRESS")
    scratch = tempfile.gettempdir()
    if len(scratch) > SOCKET_PATH:  # a Unix socket's path has 107 characters at most, and Ray takes 65 of them
        scratch = "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="ray-", dir=scratch, ignore_cleanup_errors=True) as folder:
        os.environ |= {
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_TRAIN_METRICS_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if not address:
            token = Path(folder, "token")  # Ray would put one into the user's home
            token.touch(0o600)
            token.write_text(secrets.token_hex(32))
            os.environ |= {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # here too: it listens on 127.0.0.1 only
                "RAY_prestart_worker_first_driver": "0",  # Ray Train's workers cannot be made of those
                "RAY_enable_worker_prestart": "0",
                "RAY_worker_niceness": "0",  # by default they give way to everything else
            }
        import ray

        here: dict[str, Any] = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "include_dashboard": False,
            "object_store_memory": shared_mb * 2**20,
            "_temp_dir": folder,
        }
        try:
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else here))
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            raise PlatformError(f"Ray at {address or 'this machine'} does not come up: {error}") from error
        try:
            yield "" if address else folder
        finally:
            ray.shutdown()
