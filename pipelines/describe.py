"""Parameter descriptions stand once, in the config sections; the dashboard reads them from a pipeline's docstring."""

from collections.abc import Callable
from typing import Any

from ..components.runtime import config

PLATFORM = "Where to work, as one JSON text; `flywheel compile --platform FILE` fills it in"


def described(pipeline: Callable[..., Any]) -> Callable[..., Any]:
    """Append an Args section to a pipeline's docstring. Goes below `@dsl.pipeline`."""
    lines = [f"    {name}: {describe(name)}." for name in pipeline.__annotations__ if name != "return"]
    pipeline.__doc__ = "\n".join([pipeline.__doc__ or "", "", "Args:", *lines])
    return pipeline


def describe(name: str) -> str:
    """What a parameter means, for a person."""
    if name == "platform":
        return PLATFORM
    return config.PARAMETERS[name].description
