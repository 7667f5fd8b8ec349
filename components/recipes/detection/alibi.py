"""alibi-detect's tests of drift behind the signature of ours. Its licence (BSL 1.1) keeps it out of everything else."""

from typing import Any

import numpy as np

from ...runtime.artifacts import Drift
from ...runtime.errors import UserError
from .reference import Reference
from .window import Window


def ks(reference: Reference, window: Window, alpha: float) -> tuple[Drift, ...]:
    """KSDrift on the features, with Bonferroni's correction. A box that is not there counts as below all values.

    Raises:
        UserError: alibi-detect is not installed.
    """
    lowest = float(np.finfo(np.float32).min)
    before, now = (np.nan_to_num(side.features, nan=lowest) for side in (reference, window))
    said = _import().KSDrift(before, p_val=alpha).predict(now)["data"]
    rows = zip(reference.feature_names, said["distance"], said["p_val"], strict=True)
    return tuple(
        Drift(
            name=str(name),
            test="ks",
            statistic=float(distance),
            p_value=float(p),
            drifted=bool(p < said["threshold"]),
        )
        for name, distance, p in rows
    )


def mmd(reference: Reference, window: Window, alpha: float) -> tuple[Drift, ...]:
    """MMDDrift on the embeddings, with seeded permutations on the CPU.

    Raises:
        UserError: alibi-detect, or PyTorch, is not installed.
    """
    detectors = _import("torch")
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        test = detectors.MMDDrift(
            reference.embeddings, backend="pytorch", device="cpu", p_val=alpha, n_permutations=round(2 / alpha)
        )
        said = test.predict(window.embeddings)["data"]
    p, apart, drifted = float(said["p_val"]), float(said["distance"]), bool(said["is_drift"])
    return (Drift(name="embedding", test="mmd", statistic=apart, p_value=p, drifted=drifted),)


def _import(*more: str) -> Any:
    import importlib

    try:
        for name in more:
            importlib.import_module(name)
        import alibi_detect.cd
    except ImportError as error:
        raise UserError(
            f"alibi-detect's tests of drift need {error.name}, which is not installed.",
            "pip install 'kfp-flywheel[monitor]' torch, or set detector to ks+mmd",
        ) from error
    return alibi_detect.cd
