"""Find a release in the registry: its version bears the ids of all that it was made of."""

from typing import TYPE_CHECKING

from ..runtime.artifacts import Release
from ..runtime.config import Recall
from ..runtime.errors import PlatformError, UserError
from ..runtime.manifests import find
from ..runtime.ports import Store
from ..runtime.releases import release_id
from ..runtime.step import step

if TYPE_CHECKING:
    from mlflow import MlflowClient


def recall(client: "MlflowClient", store: Store, model: str, version: str) -> Release:
    """The release of a registered version; of the highest one, if none is named.

    Raises:
        UserError: There is no such version, or it is none of ours.
        PlatformError: MLflow is away, or the store has lost the release.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        found = {str(one.version): one for one in client.search_model_versions(f"name = '{model}'")}
    except (MlflowException, SQLAlchemyError, OSError) as error:
        what = str(error).partition("\n")[0]
        raise PlatformError(f"the versions of {model} cannot be listed: {what}", "flywheel doctor") from error
    known = sorted(found, key=int)
    chosen = version or (known[-1] if known else "")
    if chosen not in found:
        raise UserError(
            f"model {model} has no version {chosen or 'at all'}; there are: {', '.join(known[-10:]) or 'none'}.",
            "flywheel run registers what passes its gate",
        )
    tags = found[chosen].tags or {}
    missing = [tag for tag in ("flywheel.package", "flywheel.report") if tag not in tags]
    if missing:
        raise UserError(f"version {chosen} of {model} lacks the tag {missing[0]}: it was not registered by a flywheel.")
    return find(store, release_id(model, chosen, tags["flywheel.package"], tags["flywheel.report"]), Release)


def run(release: str, model: str, version: str, platform: str, run_id: str) -> None:
    """Find a release and write it to the path `release`; see `component.recall`."""
    with step("recall", platform, run_id) as here:
        wanted = Recall.of(model=model, version=version)
        found = recall(here.world.mlflow, here.store, wanted.model, wanted.version)
        found.write(release)
        here.artifact = found.id
        here.sentence = f"{found.model} version {found.version}, trained on data {found.dataset}."
