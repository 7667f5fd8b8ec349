"""Give a package that passed its gate a version in the MLflow registry, once however often it is asked for.

A version is found by its tag `flywheel.package`. MLflow has no unique tags, so two processes at once may both make one;
then the lowest is the version and the others go: each process looks again after it has made its own, so all of them
agree, and one that is killed in between leaves nothing that the next one would not mend.
"""

from typing import TYPE_CHECKING

from ..runtime.artifacts import EvalReport, Lineage, ModelPackage, Release
from ..runtime.config import Register
from ..runtime.errors import PlatformError, UserError
from ..runtime.manifests import keep
from ..runtime.releases import release_id
from ..runtime.shown import mlflow_version, write_links
from ..runtime.step import step
from ..runtime.tracking import track_report

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PACKAGE = "flywheel.package"


def entitled(package: ModelPackage, report: EvalReport) -> None:
    """Only what passed its own gate is registered.

    Raises:
        UserError: The report is about another package, or its decision is not pass.
    """
    if report.package != package.id:
        raise UserError(
            f"the report {report.id} is about package {report.package}, not {package.id}.",
            "evaluate this package first",
        )
    if report.decision != "pass":
        raise UserError(
            f"package {package.id} is not registered: its gate says {report.decision}. {report.reason}",
            "mend what the report names, and run again",
        )


def tags(package: ModelPackage, report: EvalReport) -> dict[str, str]:
    """The lineage of a version, as a person finds it in the registry."""
    made = package.lineage
    return {
        PACKAGE: package.id,
        "flywheel.model_sha256": package.files["model.onnx"].sha256,
        "flywheel.checkpoint": package.checkpoint.digest,
        "flywheel.dataset": package.dataset,
        "flywheel.report": report.id,
        "flywheel.decision": report.decision,
        "flywheel.champion": report.champion or "none",
        "flywheel.code": made.code,
        "flywheel.image": made.image,
        "flywheel.run": made.run,
        "flywheel.parents": ",".join(made.parents),
    }


def register(
    client: "MlflowClient", model: str, package: ModelPackage, report: EvalReport, package_uri: str
) -> tuple[str, bool]:
    """Find or make the package's version.

    Args:
        package_uri: Where the package's manifest is.

    Returns:
        The version's number, and whether it was there before.

    Raises:
        PlatformError: MLflow is away or refuses.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    wanted = tags(package, report)
    try:
        _ensure(client, model)
        before = _versions(client, model, package.id)
        if not before:
            client.create_model_version(
                model, package_uri, package.tracking_run or None, tags=wanted, description=report.reason
            )
        first, *others = before if len(before) == 1 else _versions(client, model, package.id)
        for other in others:
            _delete(client, other)
        if (first.tags or {}).get("flywheel.report") != report.id:  # judged again, under other limits
            for name in ("flywheel.report", "flywheel.champion"):
                client.set_model_version_tag(model, str(first.version), name, wanted[name])
    except (MlflowException, SQLAlchemyError, OSError) as error:
        what = str(error).partition("\n")[0]
        raise PlatformError(
            f"package {package.id} could not be registered as {model}: {what}",
            "flywheel doctor tells whether MLflow answers",
        ) from error
    return str(first.version), bool(before)


def _ensure(client: "MlflowClient", model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: "MlflowClient", model: str, package: str) -> list["ModelVersion"]:
    """The versions of a package, lowest first; more than one only in a race or after a kill in one."""
    found = client.search_model_versions(f"name = '{model}' and tags.`{PACKAGE}` = '{package}'")
    return sorted(found, key=lambda version: int(version.version))


def _delete(client: "MlflowClient", version: "ModelVersion") -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_model_version(version.name, str(version.version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # somebody else did it
            raise


def release_of(
    model: str, version: str, package: ModelPackage, report: EvalReport, uri: str, lineage: Lineage
) -> Release:
    return Release(
        id=release_id(model, version, package.id, report.id),
        lineage=lineage,
        model=model,
        version=version,
        package=package.id,
        package_uri=uri,
        dataset=package.dataset,
        report=report.id,
    )


def run(package: str, report: str, release: str, model: str, platform: str, run_id: str, links: str = "") -> None:
    """Register and write the Release to the path `release`; see `component.register`."""
    with step("register", platform, run_id) as here:
        config = Register.of(model=model)
        judged, why = ModelPackage.read(package), EvalReport.read(report)
        entitled(judged, why)
        uri = keep(here.store, judged)
        # Not `here.reuse`: the registry itself knows whether the package is there, and it may have been replaced.
        version, existed = register(here.world.mlflow, config.model, judged, why, uri)
        made = release_of(config.model, version, judged, why, uri, here.lineage(judged.id, why.id))
        warning = track_report(lambda: here.world.mlflow, judged.tracking_run, why)
        keep(here.store, made)
        made.write(release)
        page = mlflow_version(here.world.platform.tracking, config.model, version)
        write_links(links, {"Version in MLflow": page})
        here.artifact, here.outcome = made.id, "reused" if existed else "done"
        said = "was" if existed else "is"
        here.sentence = f"{config.model} version {version} {said} registered for package {judged.id}.{warning}"
