"""A detector behind KServe: Open Inference Protocol in, boxes out. Own answers where KServe 0.20's are not fit.

KServe reads binary tensors into lists and UTF-8, dumps images into its log, echoes refused bodies, counts no errors,
and lets anybody who can reach the port unload the model.
"""

import asyncio
import base64
import binascii
import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import cv2
import kserve
import numpy as np
import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve.errors import InvalidInput, ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from kserve.protocol.rest.server import RESTServer
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..recipes.detection.predict import Detections, Predictor, decode
from ..runtime.errors import UserError
from ..runtime.ports import ANSWERED_BY, PIN
from .metrics import BUCKETS, Rows, is_refusal
from .prediction_log import PredictionLog

log = logging.getLogger("flywheel")
DEFAULT_OUTPUTS = ("boxes", "scores", "classes")
TYPES = {"boxes": ("FP32", [-1, 4]), "scores": ("FP32", [-1]), "classes": ("INT64", [-1]), "embedding": ("FP32", [-1])}
REQUESTS = Counter("flywheel_requests", "Answers to inference requests", ["model_name", "version", "code"])
FAILURES = Counter("flywheel_failures", "Failed answers, up to five in a row counted as one", ["model_name", "version"])
SECONDS = Histogram(
    "flywheel_request_seconds",
    "Time from a request's first byte to its answer, but for the client's own mistakes",
    ["model_name", "version"],
    buckets=BUCKETS,
)


class Tensors(DataPlane):  # type: ignore[misc]
    """Reads requests with binary tensors, keeping the bytes as they are."""

    def decode_inference_request(self, body: Any, headers: dict[str, str], model_name: str) -> InferRequest:
        if not isinstance(body, bytes):
            return super().decode_inference_request(body, headers, model_name)
        length = headers.get("inference-header-content-length", "")
        if not length.isdecimal() or int(length) > len(body):
            raise InvalidInput(
                f"the header inference-header-content-length is {length!r}, not the length of the JSON part."
            )
        try:
            return _request(orjson.loads(body[: int(length)]), memoryview(body)[int(length) :], model_name)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(
                "the JSON part is not an inference request with inputs of name, shape and datatype."
            ) from error


def _request(head: dict[str, Any], rest: memoryview, model_name: str) -> InferRequest:
    inputs = []
    for given in head["inputs"]:
        data, parameters = given.get("data"), given.get("parameters") or {}
        if "binary_data_size" in parameters:
            size = int(parameters["binary_data_size"])
            if not 0 <= size <= len(rest):
                raise InvalidInput(f"binary_data_size is {size}, but {len(rest)} bytes follow the JSON part.")
            data, rest = [_element(rest[:size])] if given["datatype"] == "BYTES" else [], rest[size:]
        inputs.append(InferInput(given["name"], given["shape"], given["datatype"], data, parameters))
    outputs = [RequestedOutput(wanted["name"], wanted.get("parameters")) for wanted in head.get("outputs") or []]
    return InferRequest(
        model_name, inputs, head.get("id"), parameters=head.get("parameters"), request_outputs=outputs or None
    )


def _element(raw: memoryview) -> bytes:
    """The one element of a binary BYTES tensor: its length in four bytes, little end first, then itself."""
    if len(raw) < 4 or int.from_bytes(raw[:4], "little") != len(raw) - 4:
        raise InvalidInput(
            "a binary BYTES tensor of one element is its length in four bytes, little end first, then the bytes."
        )
    return bytes(raw[4:])


def image_of(request: Any) -> bytes:
    """The encoded image of a request.

    Raises:
        InvalidInput: It is not one BYTES tensor `image` of shape [1], as base64 in JSON or as a binary tensor.
    """
    if not isinstance(request, InferRequest):
        raise InvalidInput("send an Open Inference Protocol request to /v2/models/NAME/infer.")
    if [given.name for given in request.inputs] != ["image"]:
        raise InvalidInput("a request has exactly one input, named image.")
    given = request.inputs[0]
    if given.datatype != "BYTES" or list(given.shape) != [1]:
        raise InvalidInput(
            f"input image has datatype {given.datatype} and shape {list(given.shape)}; BYTES and [1] are served."
        )
    if not isinstance(given.data, list) or len(given.data) != 1 or not isinstance(given.data[0], str | bytes):
        raise InvalidInput("input image needs one element: a base64 text in JSON, or a binary tensor.")
    if isinstance(given.data[0], bytes):
        return given.data[0]
    try:
        return base64.b64decode(given.data[0], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("input image is not base64.") from error


class Detector(kserve.Model):  # type: ignore[misc]
    """One version of a detector. Inference works in a small pool, so that health checks are answered meanwhile."""

    def __init__(
        self, name: str, version: str, predictor: Predictor, threads: int, log: PredictionLog | None = None
    ) -> None:
        super().__init__(name)
        self.version, self.predictor, self.log = version, predictor, log
        self.pool = ThreadPoolExecutor(threads, "predict")
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "image", "datatype": "BYTES", "shape": [1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": datatype, "shape": shape} for name, (datatype, shape) in TYPES.items()]

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> InferResponse:
        content = image_of(payload)
        outputs = payload.request_outputs or [RequestedOutput(name) for name in DEFAULT_OUTPUTS]
        unknown = [output.name for output in outputs if output.name not in TYPES]
        if unknown:
            raise InvalidInput(f"output {unknown[0][:100]} is not one of {', '.join(TYPES)}.")
        conf = _conf(payload)
        found = await asyncio.get_running_loop().run_in_executor(self.pool, self._work, content, conf)
        if self.log and conf in (None, self.predictor.config.conf) and not _is_shadow(payload):
            self.log.offer(content, found)
        binary = payload.use_binary_outputs
        return InferResponse(
            payload.id or uuid.uuid4().hex,
            self.name,
            [_output(output.name, found) for output in outputs],
            self.version,
            requested_outputs=[
                RequestedOutput(o.name, {"binary_data": binary if o.binary_data is None else o.binary_data})
                for o in outputs
            ],
        )

    def _work(self, content: bytes, conf: float | None) -> Detections:
        try:
            return self.predictor.predict(decode(content), conf)
        except (UserError, cv2.error) as error:
            raise InvalidInput(
                error.message if isinstance(error, UserError) else "the image cannot be decoded."
            ) from error


def _conf(request: InferRequest) -> float | None:
    """The request's own score limit, its parameter `conf`; none for the package's."""
    conf = (request.parameters or {}).get("conf")
    if conf is None:
        return None
    if isinstance(conf, bool | str) or not 0 <= conf <= 1:
        raise InvalidInput(f"parameter conf is {str(conf)[:100]!r}; a number from 0 to 1 is served.")
    return float(conf)


def _is_shadow(request: InferRequest) -> bool:
    """Whether it is recorded and asked again: then it tells nothing about the world."""
    return (request.parameters or {}).get("shadow") is True


def _output(name: str, found: Detections) -> InferOutput:
    value = np.ascontiguousarray(getattr(found, name))
    return InferOutput(name, list(value.shape), TYPES[name][0], value)


class Meter:
    """Counts and times inference requests, refuses those that are too large, and closes what nobody needs.

    A request that names its version is answered and not counted: versions are compared on what came to them at random.
    """

    def __init__(self, app: ASGIApp, who: tuple[str, str], max_bytes: int) -> None:
        self.app, self.who, self.max_bytes = app, who, max_bytes
        self.rows = Rows()
        # There from the start: what has no counter yet cannot be told from what nobody scrapes.
        REQUESTS.labels(*who, "200")
        FAILURES.labels(*who)
        SECONDS.labels(*who)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith("/v2/repository"):
            await _refuse(404, "versions are loaded and unloaded by the wanted state only.", scope, receive, send)
            return
        started, code = time.perf_counter(), 500

        held: Message | None = None

        async def answer(message: Message) -> None:
            nonlocal code, held
            if message["type"] == "http.response.start":
                code, held = message["status"], message
                return
            if held:  # KServe leaves the length of binary answers out, and an answer in chunks may break off unseen
                headers = list(held.get("headers", ()))
                if not message.get("more_body") and all(name != b"content-length" for name, _ in headers):
                    headers.append((b"content-length", str(len(message.get("body", b""))).encode()))
                start, held = {**held, "headers": [*headers, (ANSWERED_BY.encode(), self.who[1].encode())]}, None
                await send(start)
            await send(message)

        if scope["type"] != "http" or not path.endswith("/infer"):
            await self.app(scope, receive, answer)
            return
        headers = dict(scope["headers"])
        try:
            if int(headers.get(b"content-length", b"0")) > self.max_bytes:
                await _refuse(413, f"the request is larger than {self.max_bytes} bytes.", scope, receive, answer)
            else:
                await self.app(scope, _limited(receive, self.max_bytes), answer)
        finally:
            if PIN.encode() not in headers:
                self._count(code, time.perf_counter() - started)

    def _count(self, code: int, seconds: float) -> None:
        REQUESTS.labels(*self.who, str(code)).inc()
        if not is_refusal(code):
            FAILURES.labels(*self.who).inc(self.rows.failures(self.who, code))
            SECONDS.labels(*self.who).observe(seconds)


async def _refuse(code: int, sentence: str, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"error": sentence}, code)(scope, receive, send)


def _limited(receive: Receive, limit: int) -> Receive:
    """A body without a length is counted while it arrives."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise HTTPException(413, f"the request is larger than {limit} bytes.")
        return message

    return counted


class Rest(RESTServer):  # type: ignore[misc]
    """KServe's REST server on an address of ours, with our errors and our metrics."""

    def __init__(self, *args: Any, who: tuple[str, str], max_bytes: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.who, self.max_bytes = who, max_bytes

    def _add_middlewares(self, app: FastAPI) -> None:
        app.add_middleware(Meter, who=self.who, max_bytes=self.max_bytes)

    def _add_exception_handlers(self, app: FastAPI) -> None:
        super()._add_exception_handlers(app)
        app.add_exception_handler(InvalidInput, _invalid)
        app.add_exception_handler(ModelNotFound, _unknown)
        app.add_exception_handler(RequestValidationError, _malformed)
        app.add_exception_handler(HTTPException, _http)
        app.add_exception_handler(Exception, partial(_broken, self.who[1]))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 400)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 404)


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    # FastAPI's own answer repeats the refused input, which is an image.
    return JSONResponse({"error": "the body is not an Open Inference Protocol request."}, 400)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _broken(version: str, request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s: %s: %.300s", request.method, request.url.path, type(error).__name__, error)
    told = {"error": f"the model server failed: {type(error).__name__}."}
    return JSONResponse(told, 500, {ANSWERED_BY: version})  # it passes the meter by
