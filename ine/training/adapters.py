"""Write LoRA adapters in PEFT's layout; `ine.observers.adapters` reads them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ine.files import write_json
from ine.observers.adapters import ABOUT, CONFIG, WEIGHTS


def write_adapter(model: Any, out: Path, about: dict[str, Any]) -> None:
    """Write an adapter and what is known of it; `ABOUT` comes last and says that it is whole.

    Args:
        model: With an adapter on it.
        out: A folder; a file of the same name is replaced.
        about: JSON values; see `read_about`.

    Raises:
        OutputError: It cannot be written.
    """
    made = out / "adapter.part"
    model.save_pretrained(made, selected_adapters=["default"])
    settings = json.loads((made / CONFIG).read_text(encoding="utf-8"))
    # PEFT keeps these as sets, whose order differs from run to run.
    for name in ("target_modules", "modules_to_save"):
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])
    os.replace(made / WEIGHTS, out / WEIGHTS)
    write_json(out / CONFIG, settings)
    shutil.rmtree(made)
    write_json(out / ABOUT, about)
