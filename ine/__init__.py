"""`ine`: implicit negative embeddings for text-to-image models.

Invert a harmful concept against the *unlearned* model, then use the vectors found wherever a
guidance method takes a negative text (arXiv 2511.04834). Nothing heavy is imported here; names
below are loaded when they are first used.
"""

import warnings
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "ConceptEmbedding": "ine.embeddings.embedding",
    "read_embedding": "ine.embeddings.embedding",
    "write_embedding": "ine.embeddings.embedding",
    "convert_embedding": "ine.embeddings.export",
    "load_into_pipeline": "ine.protection.loaders",
    "load_parts": "ine.models.loading",
    "apply_weights": "ine.weights.apply",
    "MINI_FOLDER": "ine.models.parts",
    "invert": "ine.inversion.invert",
    "generate": "ine.sampling",
    "PictureRequest": "ine.sampling",
    "SamplerSettings": "ine.sampling",
    "Negative": "ine.guidance.negative",
    "ClassifierFree": "ine.guidance.cfg",
    "Additive": "ine.guidance.additive",
    "negative_prompt_embeds": "ine.text.encode",
    "protect": "ine.protection.pipeline",
    "EmbeddingGuider": "ine.protection.guider",
    "embedding_guider": "ine.protection.guider_builder",
}

_RENAMED = {"lay_weights": "apply_weights"}
"""Names of version 0.1, understood for one more release."""

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import ine` stays free of torch."""
    if name in _RENAMED:
        warnings.warn(f"ine.{name} is now ine.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ine' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
