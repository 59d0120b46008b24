"""The models of a grid: one with weights applied at a time, and what is kept of each."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ine import __version__
from ine.evaluation.expand import Expansion
from ine.files import sha256_of, write_json
from ine.models.loading import load_parts
from ine.models.parts import DiffusionParts, find_model
from ine.store.pictures import Store
from ine.weights.apply import apply_weights
from ine.weights.fingerprint import exact_digest
from ine.weights.hub import local_weights
from ine.weights.stack import layers_of

log = logging.getLogger("ine")

PICTURE_VERSION = 1
"""Raised when the same key would stand for other pixels."""

FORGETFUL = ("_name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype")
"""Entries of a configuration that decide no pixel."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What of a model has to be known to plan; kept, so that scoring again loads no weights."""

    digest: str
    family: str
    name: str
    """What it was recognised as."""

    scheduler: str
    steps: int
    guidance_scale: float
    batch: int
    width: int
    height: int

    def other_size(self, size: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
        """Return width and height where they are not the model's own, else (None, None)."""
        own = (self.width, self.height)
        width, height = size
        wanted = (width or self.width, height or self.height)
        return (None, None) if wanted == own else wanted


def model_digest(parts: DiffusionParts) -> str:
    """Return 64 hex digits of all in a model that can change a pixel: weights, settings, words."""
    weights = exact_digest([parts.unet, parts.vae, *parts.text_encoders])
    configs = [parts.unet.config, parts.vae.config, *(e.config for e in parts.text_encoders)]
    settings: list[Any] = [_plain(config) for config in configs]
    settings += [_plain(parts.scheduler_config), parts.zeros_for_nothing, parts.embedded_scale]
    words = [sorted(t.get_vocab().items()) for t in parts.tokenizers]
    lengths = [t.model_max_length for t in parts.tokenizers]
    about = json.dumps([weights, settings, words, lengths], sort_keys=True, default=str)
    return sha256_of(about.encode())


def _plain(config: Any) -> dict[str, Any]:
    data = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {k: v for k, v in data.items() if k not in FORGETFUL}


def facts_of(parts: DiffusionParts) -> ModelFacts:
    """Return the `ModelFacts` of parts."""
    usual, few = parts.family_info, parts.few_steps
    side = parts.pixels_per_latent
    return ModelFacts(
        digest=model_digest(parts),
        family=parts.family,
        name=f"{parts.name}, U-Net {parts.unet_name}",
        scheduler=few.scheduler if few else "ddim",
        steps=(few or usual).steps,
        guidance_scale=(few or usual).guidance_scale,
        batch=usual.batch,
        width=parts.latent_shape[2] * side,
        height=parts.latent_shape[1] * side,
    )


@dataclass(kw_only=True)
class ModelCache:
    """The models of a grid: one model with weights applied at a time, bases kept."""

    expansion: Expansion
    store: Store
    device: torch.device
    dtype: torch.dtype
    bases: dict[str, DiffusionParts] = field(default_factory=dict)
    current: tuple[str, DiffusionParts | None] = ("", None)
    writes: bool = True
    """Whether facts are kept; a dry run writes nothing."""

    loaded: Mapping[str, DiffusionParts] = field(default_factory=dict)
    """Models of the grid that the caller has in memory; no file of theirs is read."""

    def parts(self, name: str) -> DiffusionParts:
        """Return the parts of a model of the grid; embeddings and gates are not looked at.

        Raises:
            ModelError: Its base cannot be had.
            CheckpointError: Its weights do not fit.
        """
        if name in self.loaded:
            return self.loaded[name]
        if self.current[0] != name:
            self.current = ("", None)
            base = self.expansion.base_of(name)
            if base not in self.bases:
                self.bases[base] = load_parts(base, self.device, self.dtype)
            parts, unet = self.bases[base], self.expansion.unets[name]
            if unet is not None:
                parts, weights = apply_weights(parts, unet)
                if not weights.is_base:
                    log.info("model %s: %s", name, weights.describe())
            self.current = (name, parts)
        _, current = self.current
        assert current is not None, "set above, with its name"
        return current

    def facts(self, name: str) -> ModelFacts:
        """Return the `ModelFacts`, from the store where the same files were loaded before."""
        if name in self.loaded:
            return facts_of(self.loaded[name])
        path = Path(self.store.folder) / "models" / f"{self._files_key(name)}.json"
        try:
            return ModelFacts(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            found = facts_of(self.parts(name))
            if self.writes:
                write_json(path, asdict(found))
            return found

    def _files_key(self, name: str) -> str:
        """Return a hash of the files of a model, by name, size and time of change."""
        base, unet = self.expansion.base_of(name), self.expansion.unets[name]
        roots = [find_model(base)]
        roots += [local_weights(layer.path) for layer in layers_of(unet)] if unet else []
        stamps = [str(self.dtype), str(unet), __version__, str(PICTURE_VERSION)]
        for root in roots:
            files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
            for file in files:
                stat = file.stat()
                stamps.append(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}")
        return sha256_of("\n".join(stamps).encode())[:32]
