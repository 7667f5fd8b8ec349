"""Releases and wanted states for tests that need no model."""

from kfp_flywheel.components.runtime.artifacts import Lineage, Release
from kfp_flywheel.components.runtime.ports import EndpointState, Served


def release(version: str, package: str = "p") -> Release:
    """A release of `detector`; its package lies nowhere."""
    return Release(
        id=f"release-{version}",
        lineage=Lineage(code="c", image="i", run="r"),
        model="detector",
        version=version,
        package=package,
        package_uri=f"s3://bucket/artifacts/{package}.json",
        dataset="data",
        report="report",
    )


def stable(state: EndpointState, version: str, package: str = "p") -> EndpointState:
    """The state with one version as champion, which takes all traffic."""
    return with_champion(state, release(version, package))


def with_champion(state: EndpointState, release: Release) -> EndpointState:
    """The state with a release as champion, which takes all traffic."""
    version = f"v{release.version}"
    return state.but(stable=version, versions={version: Served(release=release, weight=100)}, since=1.0, by="me")
