"""Which model a single file holds, told by names and shapes of its tensors; its configuration.

Such a file has weights alone. What they are weights of is in `configs/*.json`, a file for each
variant: the settings that were published with the first model of its kind, as far as they matter
to the classes of diffusers and transformers. Sources: the component configurations of
CompVis/stable-diffusion-v1-4 and runwayml/stable-diffusion-v1-5 and -inpainting (sd1*),
stabilityai/stable-diffusion-2-1, -2-1-base and -2-inpainting (sd2*),
stabilityai/stable-diffusion-xl-base-1.0 and
diffusers/stable-diffusion-xl-1.0-inpainting-0.1 (sdxl*), on the Hugging Face hub. All of SD 2.x
have `upcast_attention`, which its attention needs in float16 and which changes nothing in float32.

A further variant is one row here and one configuration.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from ine.errors import ModelError
from ine.files import read_within
from ine.models.fit import text_widths

CONFIGS = Path(__file__).parent / "configs"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
"""Its second dimension is the number of channels that the UNet takes."""

YAML_LIMIT = 100_000
"""Bytes of a configuration beside a model; those of Stable Diffusion have 2,000."""

EPSILON, V = "epsilon", "v_prediction"
SPELLINGS = {"epsilon": EPSILON, "eps": EPSILON, "v": V, "v_prediction": V, "v-prediction": V}
ARCHITECTURES = {"stable-diffusion-v2-768-v": V, "stable-diffusion-v2-512": EPSILON}
"""Architectures of ModelSpec that say what a model predicts."""

BASE_STEPS = {875_000: "SD 2.0 base", 220_000: "SD 2.1 base"}
"""Training steps of the models of SD 2.x that predict epsilon; diffusers goes by them too."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kind of model, recognised by what its UNet reads."""

    name: str
    """Also that of its configuration."""

    title: str
    width: int
    """Width of the text states."""

    channels: int = 4
    """4 noised ones; inpainting has 5 more for the mask and the masked picture."""

    prediction: str = EPSILON

    def settings(self):
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
"""Of the same width and channels, the usual one first."""

FOREIGN = (
    (("model.diffusion_model.joint_blocks.", "joint_blocks."), "Stable Diffusion 3"),
    (("model.diffusion_model.double_blocks.", "double_blocks."), "Flux"),
    (("conditioner.embedders.0.model.",), "the refiner of Stable Diffusion XL"),
    (("edm_mean", "edm_vpred."), "a model with EDM's noise schedule, such as Playground 2.5"),
    (("control_model.",), "a ControlNet"),
)
"""(what some key starts with, what such a file is)."""

EXPECTED = "expected Stable Diffusion 1.x, 2.x or XL, ordinary or inpainting"


def check_known(path, entries):
    """Raise `ModelError` for a file of a model that ine cannot use, by its name."""
    for signs, title in FOREIGN:
        if any(name.startswith(signs) for name in entries):
            raise ModelError(f"{path}: is {title}, which ine cannot use; {EXPECTED}")


def variants_of(path, entries):
    """Return the rows of the table that a file's UNet fits; they differ in what it predicts.

    Args:
        path: For errors.
        entries: {name: tensor}; only names and shapes are looked at.

    Raises:
        ModelError: It is another model.
    """
    unet = {name: t for name, t in entries.items() if name.startswith("model.diffusion_model.")}
    widths = text_widths({n: t for n, t in unet.items() if isinstance(t, torch.Tensor)})
    shape = getattr(entries.get(FIRST), "shape", ())
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


def prediction_of(path, entries, metadata, row):
    """Return (what a model predicts, why that is believed), stated or usual.

    Args:
        path: As for `stated_prediction`.
        entries: Likewise.
        metadata: Likewise.
        row: The usual `Variant`.
    """
    found, why = stated_prediction(path, entries, metadata)
    if found:
        return found, why
    if row.prediction == V and (base := BASE_STEPS.get(_number(entries.get("global_step")))):
        return EPSILON, f"trained for as many steps as {base}"
    return row.prediction, "usual for it"


def stated_prediction(path, entries, metadata):
    """Return ("epsilon" or "v_prediction", where it is said), or (None, "").

    Args:
        path: The model; beside `model.ckpt` may be a `model.yaml`, as A1111 wants it for v.
        entries: Of the file; `v_pred` and `ztsnr` are keys that ComfyUI reads.
        metadata: Its text metadata, by ModelSpec.

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
    if beside.is_file() and (said := _parameterization(beside)):
        return said, f"{beside.name} beside it"
    return None, ""


def _parameterization(path):
    """Return what CompVis's configuration of a model says; None where it is something else."""
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
    # Latent diffusion predicts the noise where its configuration says nothing.
    said = found.get("parameterization", "eps")
    if not isinstance(said, str) or said not in SPELLINGS:
        # Lists may hold one another, and be a billion values once written out.
        shown = repr(said[:80]) if isinstance(said, str) else f"a {type(said).__name__}"
        raise ModelError(
            f"{path}: its parameterization is {shown}, expected 'eps' or 'v'; mend it or take it "
            "away"
        )
    return SPELLINGS[said]


def _number(value):
    """Return a count of steps, which may be a tensor; None for what is none."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    return value if isinstance(value, int) else None
