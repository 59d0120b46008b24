"""A language model from a GGUF file, written as a folder of transformers that can be trained.

transformers reads such files, but marks what it read as quantised, and then neither saves nor
trains it; so the weights go into a plain model, in float32.
"""

from pathlib import Path
from typing import Any

import torch

from ine.errors import MissingDependency, ModelError


def convert(file: Path, out: Path) -> int:
    """Write the model and the tokenizer of a GGUF file, and return its number of weights.

    Args:
        file: With the tokenizer inside, as converters of llama.cpp write it.
        out: The folder.

    Raises:
        MissingDependency: The package gguf is not installed.
        ModelError: The file cannot be read, or its tokenizer has no end of text.
        OSError: The folder cannot be written.
    """
    from transformers.utils import is_gguf_available

    if not file.is_file():
        raise ModelError(f"{file}: no such file; give mini, or a GGUF file of a language model")
    if not is_gguf_available():
        raise MissingDependency(f"{file}: reading it needs gguf; run: pip install gguf")
    read, tokenizer = _read(file)
    if tokenizer.eos_token is None:
        raise ModelError(f"{file}: its tokenizer has no end of text, so no answer would end")
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(read)(config)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    plain.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return sum(parameter.numel() for parameter in plain.parameters())


def _read(file: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": file.name, "local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
        return model, AutoTokenizer.from_pretrained(file.parent, **where)
    except Exception as error:  # transformers raises many kinds for a broken file
        why = (str(error).strip() or "no message").splitlines()[0][:300]
        raise ModelError(
            f"{file}: cannot be read as a language model ({type(error).__name__}: {why})"
        ) from error
