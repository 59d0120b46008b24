"""Which model a single file holds, by names and shapes of its tensors, and its configuration.

A single file has only weights. `configs/*.json` has the configuration of each variant: the
settings published with the first model of its kind that the classes of diffusers and transformers
need. Sources: the component configurations of
CompVis/stable-diffusion-v1-4 and runwayml/stable-diffusion-v1-5 and -inpainting (sd1*),
stabilityai/stable-diffusion-2-1, -2-1-base and -2-inpainting (sd2*),
stabilityai/stable-diffusion-xl-base-1.0 and
diffusers/stable-diffusion-xl-1.0-inpainting-0.1 (sdxl*), on the Hugging Face hub. All of SD 2.x
have `upcast_attention`, which its attention needs in float16 and which changes nothing in float32.

A new variant is one row here and one configuration.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ine.errors import ModelError
from ine.files import read_within
from ine.weights.fit import text_widths
from ine.weights.foreign import foreign_file

CONFIGS = Path(__file__).parent / "configs"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
"""Its second dimension is the number of input channels of the UNet."""

YAML_LIMIT = 100_000
"""Largest configuration beside a model, in bytes; those of Stable Diffusion have 2,000."""

EPSILON, V = "epsilon", "v_prediction"
SPELLINGS = {"epsilon": EPSILON, "eps": EPSILON, "v": V, "v_prediction": V, "v-prediction": V}
ARCHITECTURES = {"stable-diffusion-v2-768-v": V, "stable-diffusion-v2-512": EPSILON}
"""Architectures of ModelSpec that state the prediction type."""

BASE_STEPS = {875_000: "SD 2.0 base", 220_000: "SD 2.1 base"}
"""Training steps of the models of SD 2.x that predict epsilon; diffusers uses them too."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kind of model, recognised by the inputs of its UNet."""

    name: str
    """Also the name of its configuration file."""

    title: str
    width: int
    """Width of the text states."""

    channels: int = 4
    """4 noised ones; inpainting has 5 more for the mask and the masked picture."""

    prediction: str = EPSILON

    def settings(self) -> dict[str, Any]:
        """Return {component: its configuration}, and the pipeline's own under "model_index"."""
        return json.loads((CONFIGS / f"{self.name}.json").read_text(encoding="utf-8"))


VARIANTS = (
    Variant(name="sd1", title="Stable Diffusion 1.x", width=768),
    Variant(name="sd1-inpainting", title="Stable Diffusion 1.x inpainting", width=768, channels=9),
    Variant(name="sd2", title="Stable Diffusion 2.x, 768", width=1024, prediction=V),
    Variant(name="sd2-base", title="Stable Diffusion 2.x base, 512", width=1024),
    Variant(name="sd2-inpainting", title="Stable Diffusion 2.x inpainting", width=1024, channels=9),
    Variant(name="sdxl", title="Stable Diffusion XL", width=2048),
    Variant(name="sdxl-inpainting", title="Stable Diffusion XL inpainting", width=2048, channels=9),
)
"""Among rows of equal width and channels the most common one is first."""

EXPECTED = "expected Stable Diffusion 1.x, 2.x or XL, ordinary or inpainting"


def check_known(path: Path, entries: Mapping[str, Any]) -> None:
    """Raise `ModelError` that names the model in a file if ine cannot use it."""
    if title := foreign_file(entries):
        raise ModelError(f"{path}: is {title}, which ine cannot use; {EXPECTED}")


def variants_of(path: Path, entries: Mapping[str, Any]) -> list[Variant]:
    """Return the rows of the table that fit a file's UNet; they differ in prediction type.

    Args:
        path: For error messages.
        entries: {name: tensor}; only names and shapes are used.

    Raises:
        ModelError: It is another model.
    """
    unet = {name: t for name, t in entries.items() if name.startswith("model.diffusion_model.")}
    widths = text_widths({n: t for n, t in unet.items() if isinstance(t, torch.Tensor)})
    shape: tuple[int, ...] = getattr(entries.get(FIRST), "shape", ())
    channels = shape[1] if len(shape) == 4 else None
    rows = [row for row in VARIANTS if {row.width} == widths and row.channels == channels]
    if not rows:
        found = " and ".join(map(str, sorted(widths))) or "none"
        raise ModelError(
            f"{path}: its UNet reads text states of width {found} and takes "
            f"{channels or 'an unknown number of'} channels; {EXPECTED}: widths 768, 1024 or 2048 "
            "and 4 or 9 channels. Models of other kinds need a pipeline folder"
        )
    return rows


def prediction_of(
    path: Path, entries: Mapping[str, Any], metadata: Mapping[str, str], row: Variant
) -> tuple[str, str]:
    """Return (prediction type, reason): the stated one, else the default of a variant.

    Args:
        path: As for `stated_prediction`.
        entries: As for `stated_prediction`.
        metadata: As for `stated_prediction`.
        row: The most common `Variant`.
    """
    stated, why = stated_prediction(path, entries, metadata)
    if stated:
        return stated, why
    if row.prediction == V and (base := BASE_STEPS.get(_number(entries.get("global_step")) or 0)):
        return EPSILON, f"trained for as many steps as {base}"
    return row.prediction, "usual for it"


def stated_prediction(
    path: str | Path, entries: Mapping[str, Any], metadata: Mapping[str, str]
) -> tuple[str | None, str]:
    """Return ("epsilon" or "v_prediction", where it is stated), or (None, "").

    Args:
        path: The model; beside `model.ckpt` may be a `model.yaml`, as A1111 needs it for v.
        entries: The file's; `v_pred` and `ztsnr` are keys that ComfyUI reads.
        metadata: The file's text metadata, by ModelSpec.

    Raises:
        ModelError: The configuration beside it cannot be read.
    """
    if "v_pred" in entries:
        return V, "key v_pred"
    for key, table in (
        ("modelspec.prediction_type", SPELLINGS),
        ("modelspec.architecture", ARCHITECTURES),
    ):
        said = metadata.get(key, "").lower()
        if said in table:
            return table[said], f"{key} {said}"
    beside = Path(path).with_suffix(".yaml")
    if beside.is_file() and (found := _parameterization(beside)):
        return found, f"{beside.name} beside it"
    return None, ""


def _parameterization(path: Path) -> str | None:
    """Return the prediction type in CompVis's configuration of a model; None for other files."""
    try:
        found = yaml.safe_load(read_within(path, YAML_LIMIT))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(
            f"{path}: stands beside a model and cannot be read as its configuration ({reason}); "
            "mend it or take it away"
        ) from error
    for key in ("model", "params"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return None
    # The default of latent diffusion is to predict the noise.
    said = found.get("parameterization", "eps")
    if not isinstance(said, str) or said not in SPELLINGS:
        # Lists may contain one another and have a billion values once written out.
        shown = repr(said[:80]) if isinstance(said, str) else f"a {type(said).__name__}"
        raise ModelError(
            f"{path}: its parameterization is {shown}, expected 'eps' or 'v'; mend it or take it "
            "away"
        )
    return SPELLINGS[said]


def _number(value: Any) -> int | None:
    """Return a number of training steps, which may be a tensor; None if it is no number."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    return value if isinstance(value, int) else None
