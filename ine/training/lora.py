"""Put a low-rank adapter onto the model that is trained (Hu et al. 2021)."""

from pathlib import Path
from typing import Any

from ine.errors import ModelError
from ine.observers.adapters import add_adapter
from ine.training.bases import Base
from ine.training.settings import LoraSettings

VISION = r".*\b(vision|visual|vision_\w+)\b.*"
"""Names of layers that look at the picture."""


def with_lora(base: Base, lora: LoraSettings, adapter: Path | None) -> Any:
    """Return a base with an adapter to train: a given one, or a new one that changes nothing yet.

    Raises:
        CheckpointError: The adapter does not fit.
        ModelError: The model has no layers of the given names.
    """
    if adapter is not None:
        return add_adapter(base.model, adapter, digest=base.digest, trainable=True)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        exclude_modules=VISION if base.sees and not lora.vision else None,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base.model, config)
    except ValueError as error:
        ends = {n.rpartition(".")[2] for n, m in base.model.named_modules() if hasattr(m, "weight")}
        raise ModelError(
            f"lora.targets: {base.folder} has no layers called {', '.join(lora.targets)}; it has "
            f"{', '.join(sorted(ends))}"
        ) from error
