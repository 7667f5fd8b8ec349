"""`rayjob://NAMESPACE`: jobs as RayJobs of KubeRay, each with a Ray cluster of its own."""
