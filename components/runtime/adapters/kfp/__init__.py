"""Kubeflow Pipelines: runs and schedules, by its API server."""
