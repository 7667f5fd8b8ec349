"""What a release is called: by its place in the registry, and by what it was made of."""

from .artifacts import content_id


def release_id(model: str, version: str, package: str, report: str) -> str:
    """The id of the release of a registered version."""
    return content_id(["release.v1", model, version, package, report])
