"""Ask an endpoint about an image: Open Inference Protocol v2 over HTTP, with binary tensors."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import numpy as np

from ..recipes.detection.predict import Detections
from ..runtime.errors import PlatformError, UserError
from ..runtime.ports import ANSWERED_BY, PIN

TYPES = {"FP32": np.float32, "INT64": np.int64}


@dataclass(frozen=True)
class Answer(Detections):
    """What an endpoint says of one image. Its embedding is empty unless it was asked for.

    Args:
        version: Name of the version that answered.
    """

    version: str


@cache
def _client() -> httpx.Client:
    # An endpoint is inside the machine or the cluster; a proxy to the internet is not the way there.
    return httpx.Client(timeout=60, trust_env=False)


def answered_by(url: str, endpoint: str) -> str:
    """Which version answers at an address just now; empty for none. The question is so small that it counts nowhere."""
    try:
        return str(_client().get(f"{url}/v2/models/{endpoint}/ready").headers.get(ANSWERED_BY, ""))
    except httpx.HTTPError:
        return ""


def infer(
    url: str,
    endpoint: str,
    image: bytes,
    conf: float | None = None,
    embedding: bool = False,
    shadow: bool = False,
    client: httpx.Client | None = None,
) -> Answer:
    """Ask about one encoded image (JPEG, PNG …).

    Args:
        url: Address of the gateway or of a model server, without a trailing slash.
        conf: Score limit of this request instead of the package's.
        embedding: Whether to ask for the embedding too.
        shadow: Whether it is no request of a user's, so that prediction log and telemetry are to leave it out.
        client: Where connections are kept; one of the process by default.

    Raises:
        UserError: The endpoint refuses the image, or does not exist.
        PlatformError: It cannot be reached, or failed.
    """
    tensor = len(image).to_bytes(4, "little") + image
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tensor)}}
    outputs = [{"name": name} for name in ("boxes", "scores", "classes", *(["embedding"] if embedding else []))]
    parameters: dict[str, Any] = {"binary_data_output": True} | ({} if conf is None else {"conf": conf})
    if shadow:
        parameters["shadow"] = True
    head = json.dumps({"inputs": [given], "outputs": outputs, "parameters": parameters}).encode()
    address = f"{url}/v2/models/{endpoint}/infer"
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    if shadow:  # not every gateway marks what is asked at a version's own address
        headers[PIN] = "shadow"
    try:
        answer = (client or _client()).post(address, content=head + tensor, headers=headers)
    except httpx.HTTPError as error:
        raise PlatformError(
            f"{address} does not answer: {error or type(error).__name__}.", "flywheel status shows what is served"
        ) from error
    if answer.status_code != 200:
        kind = UserError if 400 <= answer.status_code < 500 else PlatformError
        raise kind(
            f"{address} answers {answer.status_code}: {_sentence(answer)}", "flywheel status shows what is served"
        )
    return _parse(answer)


def _sentence(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def _parse(answer: httpx.Response) -> Answer:
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    head, rest = json.loads(answer.content[:length]), answer.content[length:]
    arrays: dict[str, Any] = {}
    for output in head["outputs"]:
        kind = TYPES[output["datatype"]]
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            flat = np.array(output["data"], kind)
        else:
            flat, rest = np.frombuffer(rest[:size], kind), rest[size:]
        arrays[output["name"]] = flat.reshape(output["shape"])
    nothing = np.zeros(0, np.float32)
    return Answer(**({"embedding": nothing} | arrays), version=head["model_version"])
