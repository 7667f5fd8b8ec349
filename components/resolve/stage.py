"""Who is champion, and is every parameter right? Looked up in each run anew; later steps are handed the answer."""

from ..runtime import config
from ..runtime.artifacts import Lineage, Resolution, content_id
from ..runtime.errors import UserError
from ..runtime.manifests import keep
from ..runtime.ports import Serving
from ..runtime.step import code_version, step


def parse(lines: str) -> dict[str, str]:
    """Read lines NAME=VALUE. A value is all that follows the first `=`, spaces and further `=` included.

    Raises:
        UserError: A line has no `=` or no name, or a name stands twice.
    """
    parameters: dict[str, str] = {}
    for line in lines.split("\n"):
        if not line.strip():
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UserError(
                f"parameters has the line {line!r}, which is not NAME=VALUE.", "write one NAME=VALUE a line"
            )
        if name in parameters:
            raise UserError(f"parameters names {name} twice.", f"leave one line for {name}")
        parameters[name] = value
    return parameters


def configuration(lines: str, endpoint: str, code: str) -> str:
    """Check all parameters and give the id of the configuration.

    Args:
        lines: Lines NAME=VALUE; none means the endpoint alone.
        endpoint: Must be the one among the parameters.
        code: Version of the code.

    Raises:
        UserError: A parameter is unknown or out of its limits, or the endpoints differ.
    """
    given = parse(lines)
    config.Rollout.of(endpoint=endpoint)
    if given.setdefault("endpoint", endpoint) != endpoint:
        raise UserError(
            f"endpoint is {endpoint!r}, but parameters says {given['endpoint']!r}.", "give the same name in both places"
        )
    checked = config.check(given) if lines.strip() else given
    return content_id([checked, code])


def resolve(serving: Serving, endpoint: str, config_id: str, lineage: Lineage) -> Resolution:
    """Look up the endpoint's champion."""
    champion = serving.read(endpoint).champion
    parents = (champion.id,) if champion else ()
    return Resolution(
        id=content_id([endpoint, champion.id if champion else None, config_id]),
        lineage=lineage.but(parents=parents),
        endpoint=endpoint,
        champion=champion,
        config=config_id,
    )


def run(champion: str, parameters: str, endpoint: str, platform: str, run_id: str) -> str:
    """Resolve and write the Resolution to the path `champion`; see `component.resolve`."""
    with step("resolve", platform, run_id) as here:
        found = resolve(
            here.world.serving, endpoint, configuration(parameters, endpoint, code_version()), here.lineage()
        )
        keep(here.store, found)
        found.write(champion)
        here.artifact = found.id
        here.sentence = f"Endpoint {endpoint} has no champion yet."
        if found.champion:
            served = found.champion
            name = f"{served.model} version {served.version}"
            here.sentence = f"Endpoint {endpoint} is served by {name}, trained on data {served.dataset}."
        return found.config
