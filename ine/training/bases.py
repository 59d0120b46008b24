"""Load the model that is fine-tuned: one that sees, or one that only reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ine.errors import IneError, ModelError
from ine.observers.vlm_loading import check_vision, digest_of, load_processor
from ine.runtime import computes_bfloat16, pick_device


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model with what turns text and pictures into its tokens."""

    model: Any
    processor: Any
    """Of a vision-language model; of a text model its tokenizer."""

    folder: Path
    digest: str
    """Tells this model from others, see `ine.observers.vlm_loading.digest_of`."""

    sees: bool

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer."""
        return self.processor.tokenizer if self.sees else self.processor


def load_base(folder: Path, device: str = "auto") -> Base:
    """Return a model to be trained, with padding set up.

    Args:
        folder: A whole model with safetensors weights, as transformers saves it.
        device: See `ine.runtime.pick_device`.

    Raises:
        ModelError: It cannot be loaded, or its tokenizer has no end of text.
        ObserverError: It is a vision-language model whose processor cannot be used.
    """
    folder = Path(folder).absolute()
    sees = _sees(folder)
    where = pick_device(device)
    try:
        processor = load_processor(folder) if sees else _tokenizer(folder)
        model = _class_of(sees).from_pretrained(
            folder, dtype=training_dtype(where, folder), use_safetensors=True, local_files_only=True
        )
    except IneError:
        raise
    except Exception as error:  # transformers raises many kinds for a broken folder
        why = (str(error).strip() or "no message").splitlines()[0][:300]
        raise ModelError(
            f"{folder}: cannot be loaded ({type(error).__name__}: {why}); give the folder of a "
            "whole model with its tokenizer or processor and safetensors weights"
        ) from error
    tokenizer = processor.tokenizer if sees else processor
    if tokenizer.eos_token is None:
        raise ModelError(
            f"{folder}: its tokenizer has no end of text (eos_token in tokenizer_config.json), so "
            "a model could not learn where an answer ends; set the one its chat template ends with"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Base(
        model=model.to(where),
        processor=processor,
        folder=folder,
        digest=digest_of(folder),
        sees=sees,
    )


SMALL = 1_000_000_000
"""Bytes of weights up to which a model stays in float32: it needs little memory there, and merged
adapters and ratios of probabilities lose digits in bfloat16."""


def training_dtype(device: torch.device, folder: Path | None = None) -> torch.dtype:
    """Return bfloat16 for a large model on a CUDA device that computes it, else float32.

    float16, in which models are used, needs scaled losses, and a large model overflows in it.

    Args:
        device: Where it is trained.
        folder: The model's; without one it counts as large.
    """
    fast = device.type == "cuda" and computes_bfloat16(device)
    weights = 0 if folder is None else sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    small = folder is not None and weights <= SMALL
    return torch.bfloat16 if fast and not small else torch.float32


def _sees(folder: Path) -> bool:
    """Return whether a folder's model takes pictures.

    Raises:
        ModelError: The folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: no config.json there; give the folder of a language model as transformers "
            "saves it"
        )
    from ine.errors import ObserverError

    try:
        check_vision(folder, str(folder))
    except ObserverError:
        return False
    return True


def _class_of(sees: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
