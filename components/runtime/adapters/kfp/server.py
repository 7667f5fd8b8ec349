"""The API server of Kubeflow Pipelines: found in seconds or explained, pipelines uploaded once, errors for a person.

By kfp's generated client: kfp.Client cannot be imported in a step, prints, and knows no timeout.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
import urllib3
import yaml

from ...artifacts import content_id
from ...errors import Conflict, PlatformError, UserError

HOST = "FLYWHEEL_KFP_HOST"
"""Environment variable: where this process reaches the API server, if that is not where pods do."""
TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""What a pod labelled `access-ml-pipeline: "true"` is given in a Kubeflow of many users."""
EXPERIMENT = "kfp-flywheel"
PAGE = 100
FIRST_S, ANSWER_S = 5.0, 30.0


class Server:
    """`kfp+http://HOST:PORT/PATH?namespace=NAME&token=ENV&ui=URL`.

    Args:
        uri: `namespace` is the user's, in a Kubeflow of many users; `token` names the environment variable with a
            bearer token; `ui` is where people see the dashboard.

    Raises:
        PlatformError: It does not answer as Kubeflow Pipelines does.
        UserError: The token or the namespace is missing.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri.removeprefix("kfp+"))
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if unknown := set(options) - {"namespace", "token", "ui"}:
            raise UserError(f"runs has {sorted(unknown)[0]}, which is not known: namespace, token, ui.", "correct runs")
        self.url = (os.environ.get(HOST) or parts._replace(query="").geturl()).rstrip("/")
        self.ui = options.get("ui", self.url).rstrip("/")
        self.namespace = options.get("namespace", "")
        self._variable = options.get("token", "")
        configuration = api.Configuration(host=self.url)
        configuration.refresh_api_key_hook = self._refresh
        configuration.api_key_prefix["authorization"] = "Bearer"
        configuration.ssl_ca_cert = os.environ.get("SSL_CERT_FILE") or None
        self._refresh(configuration)
        self._client = api.ApiClient(configuration)
        self._client.rest_client.pool_manager.connection_pool_kw["timeout"] = urllib3.Timeout(ANSWER_S)
        self._greet()
        self.runs = api.RunServiceApi(self._client)
        self.recurring = api.RecurringRunServiceApi(self._client)
        self._pipelines = api.PipelineServiceApi(self._client)
        self._uploads = api.PipelineUploadServiceApi(self._client)
        self._experiments = api.ExperimentServiceApi(self._client)
        self._names: dict[str, str] = {}

    def _refresh(self, configuration: api.Configuration) -> None:
        """Take the token anew: a mounted one is renewed every hour."""
        if self._variable:
            token = os.environ.get(self._variable, "")
            if not token:
                raise UserError(
                    f"{self._variable} is not set: runs names it as the variable with the token.",
                    f"export {self._variable}=…",
                )
        else:
            token = TOKEN.read_text().strip() if TOKEN.exists() else ""
        if token:
            configuration.api_key["authorization"] = token

    def _greet(self) -> None:
        """Ask whether it is there, before anything else is."""
        there = f"kubectl -n kubeflow port-forward svc/ml-pipeline 8888, then export {HOST}=http://127.0.0.1:8888"
        try:
            answer = self._get("/apis/v2beta1/healthz", timeout=FIRST_S, retries=False)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            what = re.sub(r"^HTTPS?Connection\(.*?\): ", "", str(error))
            untrusted = isinstance(error, urllib3.exceptions.SSLError)
            raise PlatformError(
                f"Kubeflow Pipelines at {self.url} does not answer: {what}.",
                "export SSL_CERT_FILE=FILE, with the authority that signed its certificate" if untrusted else there,
            ) from error
        good = answer.status == 200
        try:
            many = bool(good and answer.json().get("multi_user"))
        except (ValueError, AttributeError):
            good = False
        if answer.status in (401, 403):
            raise PlatformError(
                f"Kubeflow Pipelines at {self.url} refuses us: {answer.status}.",
                "runs: kfp+http://…?token=VARIABLE, with a token of yours in that environment variable",
            )
        if not good:
            raise PlatformError(
                f"{self.url}/apis/v2beta1/healthz answers {answer.status}, and not as Kubeflow Pipelines does.", there
            )
        if many and not self.namespace:
            raise UserError(
                f"Kubeflow Pipelines at {self.url} serves many users, and runs names no namespace.",
                "runs: kfp+http://…?namespace=YOURS in the platform file",
            )

    @cached_property
    def experiment(self) -> str:
        """Id of the experiment that our runs are in."""
        with explained("the experiment cannot be had"):
            for _ in range(2):
                listing = partial(
                    self._experiments.experiment_service_list_experiments, namespace=self.namespace or None
                )
                for found in self.listed(listing, "experiments", display_name=EXPERIMENT):
                    return str(found.experiment_id)
                made = api.V2beta1Experiment(display_name=EXPERIMENT, namespace=self.namespace or None)
                with existing():  # of two at once, one makes it
                    self._experiments.experiment_service_create_experiment(made)
        raise PlatformError(f"experiment {EXPERIMENT} is neither there nor made.")

    def name_of(self, pipeline: str) -> str:
        """Name of a pipeline by its id; the id, if it is gone."""
        if pipeline not in self._names:
            try:
                self._names[pipeline] = self._pipelines.pipeline_service_get_pipeline(pipeline).display_name
            except api.ApiException as error:
                if error.status != 404:
                    raise
                self._names[pipeline] = pipeline
        return self._names[pipeline]

    def upload(self, name: str, document: str) -> api.V2beta1PipelineVersionReference:
        """Have a pipeline there in this very version, and give their ids. The version is named by its content.

        Args:
            document: The compiled YAML.
        """
        version = content_id(document)
        with explained(f"pipeline {name} cannot be uploaded"):
            ids = list(self._named(name))
            if not ids:
                said = next(yaml.safe_load_all(document))["pipelineInfo"].get("description")
                wanted = api.V2beta1Pipeline(
                    display_name=name, name=name, description=said, namespace=self.namespace or None
                )
                with existing():
                    self._pipelines.pipeline_service_create_pipeline(wanted)
                ids = list(self._named(name))
            pipeline = ids[0]
            for _ in range(2):
                listing = partial(self._pipelines.pipeline_service_list_pipeline_versions, pipeline)
                for found in self.listed(listing, "pipeline_versions", display_name=version):
                    return api.V2beta1PipelineVersionReference(pipeline, found.pipeline_version_id)
                with existing(), _as_file(document) as path:
                    self._uploads.upload_pipeline_version(str(path), name=version, pipelineid=pipeline)
        raise PlatformError(f"version {version} of pipeline {name} is neither there nor uploaded.")

    def _named(self, name: str) -> Iterator[str]:
        listing = partial(self._pipelines.pipeline_service_list_pipelines, namespace=self.namespace or None)
        return (each.pipeline_id for each in self.listed(listing, "pipelines", display_name=name))

    def listed(self, call: Callable[..., Any], field: str, **equal: str) -> Iterator[Any]:
        """All that a listing has, page by page.

        Args:
            call: One of the generated client's.
            field: Where its answer has the objects.
            equal: Fields that must have these values.
        """
        predicates = [{"operation": "EQUALS", "key": key, "string_value": value} for key, value in equal.items()]
        given = {"filter": json.dumps({"predicates": predicates})} if predicates else {}
        token = ""
        while True:
            answer = call(page_size=PAGE, page_token=token, **given)
            yield from getattr(answer, field) or ()
            token = answer.next_page_token
            if not token:
                return

    def our_runs(self, **equal: str) -> Iterator[api.V2beta1Run]:
        """The runs of our experiment with these values, the newest first."""
        listing = partial(self.runs.run_service_list_runs, experiment_id=self.experiment, sort_by="created_at desc")
        return self.listed(listing, "runs", **equal)

    def asked_for(self, found: Any) -> tuple[str, dict[str, Any]]:
        """Pipeline and parameters of a run, or of a recurring one."""
        reference, config = found.pipeline_version_reference, found.runtime_config
        name = self.name_of(reference.pipeline_id) if reference else ""
        return name, dict((config.parameters if config else None) or {})

    def text(self, path: str) -> str:
        """What an address of the API server answers, as text."""
        answer = self._get(path)
        if answer.status != 200:
            raise api.ApiException(http_resp=answer)
        return answer.data.decode(errors="replace")

    def _get(self, path: str, **how: Any) -> urllib3.BaseHTTPResponse:
        """What the API server answers, whatever that is."""
        headers = dict(self._client.default_headers)
        self._client.update_params_for_auth(headers, [], ["Bearer"])
        manager: urllib3.PoolManager = self._client.rest_client.pool_manager
        return manager.request("GET", f"{self.url}{path}", headers=headers, **how)


@contextmanager
def existing() -> Iterator[None]:
    """Something is to be made, and may be there already."""
    try:
        yield
    except api.ApiException as error:
        if error.status != 409 and "already exist" not in _message(error):
            raise


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the API server says into an error for a person that begins with `what`."""
    try:
        yield
    except api.ApiException as error:
        message = _message(error)
        if error.status == 409:
            raise Conflict(f"{what}: {message}") from error
        if error.status in (400, 404):
            raise UserError(f"{what}: {message}", "flywheel doctor --platform FILE") from error
        raise PlatformError(f"{what}: {error.status} {message}") from error
    except urllib3.exceptions.HTTPError as error:
        raise PlatformError(f"{what}: {getattr(error, 'reason', error)}.", "is its port forwarded still?") from error


def _message(error: api.ApiException) -> str:
    """The first sentence of an error: what follows is the server's stack."""
    try:
        document = json.loads(error.body)
        text = str(document.get("error") or document.get("message") or document["error_message"])
    except (TypeError, ValueError, KeyError, AttributeError):
        text = str(error.reason)
    return text.partition("\n")[0].rstrip(".") + "."


@contextmanager
def _as_file(document: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="flywheel-upload-") as folder:
        path = Path(folder, "pipeline.yaml")
        path.write_text(document)
        yield path
