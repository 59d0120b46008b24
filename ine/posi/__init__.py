"""A language model that rewrites prompts before a text-to-image model reads them (POSI)."""
