"""What became of a data version under a configuration: written when nothing is left to be done for the pair.

A run ends early only on such a record, so a run that was killed between its gate and its rollout goes on.
"""

from .manifests import load
from .ports import Store
from .records import Record


class Outcome(Record):
    """How a run ended for its data: the step that had the last word, its decision and its reason."""

    dataset: str
    config: str
    step: str
    decision: str
    reason: str


def _key(dataset: str, config: str) -> str:
    return f"decisions/{dataset}/{config}.json"


def conclude(store: Store, outcome: Outcome) -> None:
    """Record an outcome. The first one stands: a run that was killed after writing it says the same again."""
    key = _key(outcome.dataset, outcome.config)
    if not store.exists(key):
        store.put(key, outcome.to_json())


def concluded(store: Store, dataset: str, config: str) -> Outcome | None:
    """The outcome for this data under this configuration, if there is one."""
    key = _key(dataset, config)
    return load(store, key, Outcome) if store.exists(key) else None
