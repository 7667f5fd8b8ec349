"""The image of each dependency profile: profile = extra in pyproject.toml = folder under images/ = constant here.

`flywheel compile --platform FILE` replaces these names by the ones of the platform file, by digest on a cluster.
"""

VERSION = "0.1.0"
RAY = "2.60.0"
"""Of the train image; RayJobs must name it."""
STEPS = f"kfp-flywheel-steps:{VERSION}"
TRAIN = f"kfp-flywheel-train:{VERSION}"
SERVE = f"kfp-flywheel-serve:{VERSION}"
MONITOR = f"kfp-flywheel-monitor:{VERSION}"
