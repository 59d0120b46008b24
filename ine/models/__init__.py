"""Models: the parts of a pipeline, and unlearned weights laid over them."""
