"""Base models: the parts of a pipeline, from folders, the hub, or single files."""
