"""`kserve://NAMESPACE`: one immutable InferenceService a version, and one HTTPRoute of ours before them."""
