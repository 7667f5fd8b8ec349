"""One version of one endpoint as a process: a KServe ModelServer on ONNX Runtime, without torch.

`python -m kfp_flywheel.components.serving.model_server --package URI --store ROOT --name ENDPOINT --version v1`; each
flag may stand in the environment instead (FLYWHEEL_PACKAGE …). It answers once the package is fetched, verified and
reproduces its golden outputs; a server that cannot ends with the reason as its last line.
"""

import argparse
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..runtime.artifacts import ModelPackage
from ..runtime.errors import FlywheelError, UserError
from ..runtime.lines import MARK, say
from ..runtime.packages import fetch_package
from ..runtime.ports import Store
from ..runtime.wiring import open_store

if TYPE_CHECKING:
    from ..recipes.detection.predict import Predictor

SERVING_AT = f"{MARK}serving at "
DRAIN_S = 10
MEGAPIXELS = 100


def load(store: Store, package_uri: str) -> tuple[ModelPackage, "Predictor"]:
    """Fetch a package, verified, and check that this machine reproduces its golden outputs.

    Raises:
        PlatformError: A file is not the one that was packaged, or the golden outputs are not reproduced.
        UserError: It is of a family that this server does not know.
    """
    # Before cv2 is loaded: an image of some kilobytes can unfold to gigabytes.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MEGAPIXELS * 1_000_000))
    import cv2

    from ..recipes.detection import golden
    from ..recipes.detection.predict import Predictor

    cv2.setNumThreads(1)
    package = ModelPackage.from_json(store.get(package_uri), package_uri)
    if package.family != "detection":
        raise UserError(f"package {package.id} is of the family {package.family}; this server serves detection.")
    with tempfile.TemporaryDirectory(prefix="flywheel-package-") as folder:
        predictor = Predictor(fetch_package(store, package, Path(folder)), threads=1)
        golden.check(predictor, Path(folder))
    return package, predictor


class _Unused(ModuleType):
    """Stands for a package that KServe imports and this server never uses; any name in it is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def import_kserve() -> None:
    """Import KServe without its cluster client and pandas: half the time until a version is ready, half its memory."""
    sys.argv = sys.argv[:1]  # KServe reads the command line when it is imported
    os.environ.setdefault("KSERVE_LOGLEVEL", "WARNING")
    warnings.filterwarnings("ignore", module=r"fastapi\.")  # of what KServe does
    for name in ("kubernetes", "pandas"):
        sys.modules.setdefault(name, _Unused(name))
    importlib.import_module("kserve")


def listen(host: str, port: int) -> socket.socket:
    """Take an address, so that connections wait from now on.

    Raises:
        UserError: It is taken.
    """
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise UserError(
            f"port {port} of {host} cannot be used: {error.strerror}.", "choose another one with --port"
        ) from error
    taken.listen(2048)
    return taken


def _serve(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.log_share <= 1:
        raise UserError(f"--log-share is {arguments.log_share:g}; it is a share, 0 to 1.")
    store = open_store(arguments.store)
    package, predictor = load(store, arguments.package)
    taken = listen(arguments.host, arguments.port)
    import_kserve()
    import kserve
    from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING

    from .detector import Detector, Rest, Tensors
    from .prediction_log import PredictionLog

    class Server(kserve.ModelServer):  # type: ignore[misc]
        def start(self, models: list[kserve.Model]) -> None:
            for model in models:
                self.register_model(model)
            rest = Rest(
                FASTAPI_APP_IMPORT_STRING,
                self.dataplane,
                self.model_repository_extension,
                self.http_port,
                grace_period=DRAIN_S,
                who=(arguments.name, arguments.version),
                max_bytes=arguments.max_body_mb << 20,
            )
            rest.run([taken])

    server = Server(http_port=taken.getsockname()[1], enable_grpc=False)
    # Its constructor sets up logging with a line for each request; requests are counted instead.
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    server.dataplane = Tensors(model_registry=server.registered_models)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn drains, then raises the signal again
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"{SERVING_AT}http://{host}:{taken.getsockname()[1]} as process {os.getpid()}", flush=True)
    log = None
    if arguments.log_share:
        log = PredictionLog(store, arguments.name, arguments.version, package.id, arguments.log_share)
    try:
        server.start([Detector(arguments.name, arguments.version, predictor, arguments.threads, log)])
    finally:
        if log:
            log.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="model_server", description=__doc__)

    def flag(name: str, default: str | None, meaning: str, kind: type = str) -> None:
        given = os.environ.get(f"FLYWHEEL_{name.upper()}", default)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=given, required=given is None, help=meaning)

    flag("package", None, "URI of the ModelPackage manifest")
    flag("store", None, "root URI of the store that holds it")
    flag("name", None, "name of the endpoint")
    flag("version", None, "name of the version, v1")
    flag("host", "127.0.0.1", "address to listen on; 0.0.0.0 in a pod")
    flag("port", "8080", "port to listen on; 0 takes a free one", int)
    flag("threads", str(2 * (os.cpu_count() or 1)), "inferences at once, one thread each", int)
    flag("log_share", "1", "share of the requests that the prediction log keeps; 0 for none", float)
    flag("max_body_mb", "32", "largest request, in MiB", int)
    try:
        _serve(parser.parse_args())
    except FlywheelError as error:
        say(f"model server: {error}")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
