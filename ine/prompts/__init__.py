"""Prompt sets: the files that people have, screened, and the named sets of the bundled model."""
