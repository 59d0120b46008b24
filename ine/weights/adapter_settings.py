"""The strength of each difference of a LoRA, from its trainer's settings.

PEFT writes `adapter_config.json` beside `adapter_model.safetensors`; diffusers writes the same
settings into the header of its own file. The tensors of such files have no alpha, so without
these settings a LoRA would be applied at the wrong strength.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ine.errors import CheckpointError
from ine.files import parse_json
from ine.weights.source import Source, read_json

Number = TypeVar("Number", int, float, int | None)

CONFIG = "adapter_config.json"
RAW = "base_model.model."
"""Prefix of the names in PEFT's own files; diffusers removes it."""

MOST_ALPHA = 1e9
USUAL_ALPHA = 8
"""PEFT's default alpha."""

INITS = (True, False, None, "true", "gaussian", "eva", "orthogonal", "mica")
"""Initialisations of PEFT that do not change the base's weights, so that the file's product is
the whole difference."""

RESIDUAL_INITS = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "loftq": "LoftQ",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
}
"""Prefixes of the initialisations that subtract a part of the base's weights, or quantise them,
before training (Meng et al. 2024, Buyukakyuz 2024, Li et al. 2023, Yang et al. 2024,
Wang et al. 2024)."""

VARIANTS = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with a bias",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on parameters",
}
"""Settings of PEFT whose formula is not W + scale * up down -> their names."""

MOST_EFFORT = 24
"""Largest effort of a pattern, see `_effort`; that of `.*attn2.*to_(q|k|v)` is 14."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What the settings of one adapter say about its strength."""

    path: Path
    """For error messages."""

    alpha: float = USUAL_ALPHA
    rank: int | None = None
    rslora: bool = False
    """Whether the divisor is the root of the rank (Kalajdzievski 2023)."""

    alphas: tuple[tuple[re.Pattern[str], float], ...] = ()
    """(pattern, alpha of the modules that it matches); the first match counts."""

    ranks: tuple[tuple[re.Pattern[str], int], ...] = ()

    def scale(self, module: str, rank: int) -> float:
        """Return the factor on up down of a module.

        Args:
            module: Its path as the trainer saw it, without prefixes.
            rank: Rank of its tensors.

        Raises:
            CheckpointError: The settings state another rank.
        """
        stated = _first(self.ranks, module, self.rank)
        if stated is not None and stated != rank:
            raise CheckpointError(
                f"{self.path}: its adapter settings state rank {stated} for {module}, its tensors "
                f"have {rank}; they belong to different adapters, save it again with its {CONFIG}"
            )
        alpha = _first(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _first(
    patterns: Iterable[tuple[re.Pattern[str], Number]], module: str, otherwise: Number
) -> Number:
    return next((value for pattern, value in patterns if pattern.match(module)), otherwise)


def adapter_settings(source: Source) -> dict[str, AdapterSettings]:
    """Return {component: settings} of a LoRA; the component "" stands for all.

    Args:
        source: A `Source` with a LoRA's entries. Settings are in its `config`, else beside PEFT's
            own file, else in the text metadata.

    Raises:
        CheckpointError: The settings cannot be read, or are those of another kind of adapter.
    """
    config = source.config
    if not config and source.beside and is_raw(source.entries):
        config = read_json(source.beside, CONFIG)
    if config:
        return {"": _parsed(source.path, config)}
    try:
        flat = parse_json(source.metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        flat = None
    if not isinstance(flat, dict):
        raise CheckpointError(
            f"{source.path}: its lora_adapter_metadata, which holds the alpha, cannot be read; "
            "download or save it again"
        )
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, setting = key.partition(".")
        found.setdefault(component, {})[setting] = value
    return {component: _parsed(source.path, given) for component, given in found.items()}


def is_raw(entries: Iterable[str]) -> bool:
    """Return whether the names are those of a file written by PEFT itself."""
    return any(name.startswith(RAW) for name in entries)


def _parsed(path: Path, given: Mapping[str, Any]) -> AdapterSettings:
    if why := _unlike(given):
        raise CheckpointError(
            f"{path}: its adapter settings are not those of a plain LoRA ({why}); merge it into a "
            "UNet with the tool that made it, and give that"
        )
    alpha, rank = given.get("lora_alpha"), given.get("r")
    return AdapterSettings(
        path=path,
        alpha=USUAL_ALPHA if alpha is None else alpha,
        rank=rank,
        rslora=bool(given.get("use_rslora")),
        alphas=_patterns(path, "alpha_pattern", given.get("alpha_pattern")),
        ranks=_patterns(path, "rank_pattern", given.get("rank_pattern")),
    )


def _unlike(given: Mapping[str, Any]) -> str:
    """Return how settings differ from those of a plain LoRA, or ""."""
    kind = str(given.get("peft_type") or "LORA")[:80]
    if kind.upper() != "LORA":
        return f"its peft_type is {kind}"
    if named := [title for setting, title in VARIANTS.items() if given.get(setting)]:
        return named[0]
    init = given.get("init_lora_weights")
    text = init.lower() if isinstance(init, str) else init
    if text not in INITS:
        name = str(init)[:80]
        titles = (t for start, t in RESIDUAL_INITS.items() if str(text).startswith(start))
        return f"{next(titles, name)}: init_lora_weights {name!r} changes the base's own weights"
    for setting in ("lora_alpha", "r"):
        if (value := given.get(setting)) is not None and not _is_number(value):
            return f"its {setting} is {str(value)[:80]}"
    for setting in ("alpha_pattern", "rank_pattern"):
        table = given.get(setting) or {}
        if not isinstance(table, dict) or not all(map(_is_number, table.values())):
            return f"its {setting} is no table of numbers"
    return ""


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < MOST_ALPHA  # type: ignore[arg-type]


def _patterns(
    path: Path, setting: str, table: Mapping[str, Any] | None
) -> tuple[tuple[re.Pattern[str], Any], ...]:
    """Return ((compiled pattern, number), ...) of a table of PEFT.

    A key is a regular expression that must match a module's path, or its end after a dot.
    """
    made = []
    for key, value in (table or {}).items():
        try:
            if _effort(key) > MOST_EFFORT:
                raise re.error("it may take too long")
            made.append((re.compile(rf"(.*\.)?({key})$"), value))
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: {key[:80]!r} in its {setting} cannot be used as a regular expression "
                f"({error}); name the modules themselves in {CONFIG}"
            ) from error
    return tuple(made)


def _effort(pattern: str) -> float:
    """Return the base-2 logarithm of how often a match may branch in a name of 64 letters, roughly.

    Nested repetitions count as infinite: a few letters of them take years.
    """
    bare = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern.replace("(?:", "("))
    if len(pattern) > 500 or re.search(r"\)[*+{]", bare):
        return math.inf
    return 6 * len(re.findall(r"[*+{]", bare)) + len(re.findall(r"[|?]", bare))
