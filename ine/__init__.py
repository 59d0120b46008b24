"""`ine`: implicit negative embeddings for text-to-image models.

Invert a harmful concept against the *unlearned* model, then use the vectors found wherever a
guidance method took a negative text (arXiv 2511.04834). Nothing heavy is imported here; names
below are loaded when they are first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "ConceptEmbedding": "ine.embedding",
    "read_embedding": "ine.embedding",
    "write_embedding": "ine.embedding",
    "convert_embedding": "ine.formats.export",
    "load_into_pipeline": "ine.formats.pipelines",
    "load_parts": "ine.models.loading",
    "lay_weights": "ine.models.checkpoints",
    "invert": "ine.inversion.invert",
    "generate": "ine.sampling",
    "PictureRequest": "ine.sampling",
    "ClassifierFree": "ine.guidance.cfg",
    "Additive": "ine.guidance.additive",
    "negative_prompt_embeds": "ine.text",
    "protect": "ine.protection",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name):
    """Import a public name on first use, so that `import ine` stays free of torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ine' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
