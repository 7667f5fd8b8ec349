"""The only place that chooses: the platform's URIs → adapters."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .config import Platform
from .errors import UserError
from .ports import Jobs, Notifier, Runs, Schedules, Serving, Source, Store, Telemetry

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .adapters.cluster import Cluster
    from .adapters.installed import Installed


def open_store(root: str) -> Store:
    """The store with this root URI."""
    if root.startswith("file:///"):
        from .adapters.local.store import LocalStore

        return LocalStore(root)
    if root.startswith("s3://"):
        from .adapters.s3 import S3Store

        return S3Store(root)
    if root.startswith("gs://"):
        from .adapters.gcs import GcsStore

        return GcsStore(root)
    raise UserError(
        f"{root} is not a store: file:///folder, s3://bucket/prefix and gs://bucket/prefix are known.",
        "correct store in the platform file",
    )


def open_source(root: str) -> Source:
    """What lies under a root URI, written by others: a folder of this machine, or a bucket."""
    if root.startswith("s3://"):
        from .adapters.s3 import S3Store

        return S3Store(root)
    if root.startswith("gs://"):
        from .adapters.gcs import GcsStore

        return GcsStore(root)
    from .adapters.local.source import LocalSource

    return LocalSource(root)


@dataclass(frozen=True)
class World:
    """The backends of one platform, each opened when it is first asked for."""

    platform: Platform

    @cached_property
    def store(self) -> Store:
        return open_store(self.platform.store)

    @cached_property
    def landing(self) -> Store:
        if not self.platform.landing:
            raise UserError(
                "landing is missing: images have nowhere to wait for labels.",
                "landing: file:///folder, s3://bucket/folder or gs://bucket/folder in the platform file",
            )
        return open_store(self.platform.landing)

    @cached_property
    def jobs(self) -> Jobs:
        if namespace := self.platform.jobs_namespace:
            from .adapters.rayjob.jobs import RayJobs

            return RayJobs(namespace, self.platform.pods)
        from .adapters.local.jobs import LocalJobs

        return LocalJobs()

    @cached_property
    def serving(self) -> Serving:
        if self.platform.serving_namespace:
            if self.platform.gateway and self.platform.gateway.mode == "knative":
                from .adapters.kserve.knative import KnativeServing

                return KnativeServing(self.platform)
            from .adapters.kserve.serving import KServe

            return KServe(self.platform)
        from .adapters.local.serving import LocalServing

        return LocalServing(self.platform.serving)

    @cached_property
    def cluster(self) -> "Cluster":
        """The cluster itself, for `flywheel doctor`; stages have no use for it."""
        from .adapters.cluster import Cluster

        return Cluster()

    def installed(self) -> "Installed":
        """What of ours is on the cluster."""
        from .adapters.installed import Installed

        return Installed(self.platform)

    @cached_property
    def telemetry(self) -> Telemetry:
        if not self.platform.telemetry:
            raise UserError(
                "telemetry is missing: nothing is known of a canary.",
                "telemetry: local:///folder, where serving is, or prometheus+http://HOST:PORT in the platform file",
            )
        if self.platform.telemetry.startswith("prometheus+"):
            from .adapters.prometheus.telemetry import Prometheus

            return Prometheus(self.platform.telemetry, self.platform.serving_namespace)
        from .adapters.local.telemetry import LocalTelemetry

        return LocalTelemetry(self.platform.telemetry)

    def scraped(self) -> int:
        """How many pods Prometheus counts in the namespace of the endpoints."""
        from .adapters.prometheus.telemetry import Prometheus

        assert isinstance(self.telemetry, Prometheus)
        return self.telemetry.targets()

    @cached_property
    def runs(self) -> Runs:
        if not self.platform.runs:
            raise UserError(
                "runs is missing: nobody works off what is asked for.",
                "runs: local:///folder or kfp+http://HOST:PORT in the platform file",
            )
        if self.platform.steps_namespace:
            from .adapters.kfp.runs import KfpRuns

            return KfpRuns(self.platform, lambda: self.store)
        from .adapters.local.runs import LocalRuns

        return LocalRuns(self.platform.runs)

    @cached_property
    def schedules(self) -> Schedules:
        if not self.platform.steps_namespace:
            raise UserError(
                "schedules are kept by Kubeflow Pipelines, and runs names none.",
                "flywheel watch is the schedule of one machine; on a cluster: runs: kfp+http://HOST:PORT",
            )
        from .adapters.kfp.schedules import KfpSchedules

        return KfpSchedules(self.platform)

    @cached_property
    def notifiers(self) -> dict[str, Notifier]:
        """The ways to people, by their URIs."""
        from .adapters.notices import LogNotifier, PostNotifier, as_slack, as_webhook

        opened: dict[str, Notifier] = {}
        for uri in self.platform.notify:
            scheme, _, variable = uri.partition("://")
            document = as_slack if scheme == "slack" else as_webhook
            opened[uri] = PostNotifier(variable, document) if variable else LogNotifier()
        return opened

    @cached_property
    def mlflow(self) -> "MlflowClient":
        """Tracking and registry: MLflow everywhere, so there is no port; whoever asks first waits for its import."""
        from .adapters.mlflow import open_mlflow

        return open_mlflow(self.platform.tracking)


def connect(platform: Platform) -> World:
    """Open the backends of a platform."""
    return World(platform)
