"""`ine unet`: inspect unlearned weights, and merge them into their base for other programs."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.command import IneSubgroup
from ine.cli.model import ModelOptions, load_base
from ine.cli.unet_facts import as_lines, describe
from ine.cli.writing import claim_file
from ine.weights.stack import Layer, as_unet

if TYPE_CHECKING:
    import torch

    from ine.models.parts import DiffusionParts
    from ine.models.stored import StoredParts
    from ine.weights.stack import WeightStack
    from ine.weights.unlearned import UnlearnedWeights

log = logging.getLogger("ine")

KEPT = ("ine.method", "ine.concept")
"""Metadata of the file that its merged copy keeps."""


@click.group(cls=IneSubgroup)
def unet() -> None:
    """Inspect unlearned weights, or merge them for other programs."""


@unet.command()
@click.argument("file", type=click.Path(path_type=Path))
@options.model
@options.json_output
def show(file: Path, model: str | None, as_json: bool) -> None:
    """Show what FILE is recognised as, what it changes, where and by how much.

    What it changes needs a base to compare with: that of --model, else the one that the file
    names, if it is on this machine.
    """
    from ine.weights.apply import compare_weights
    from ine.weights.read import read_weights

    weights = read_weights(file)
    base = _base_of(weights, model)
    applied: Mapping[str, torch.Tensor] = {}
    if base:
        weights, applied = compare_weights(base, file)
        if weights.is_base:
            log.warning("%s", weights.describe())
    facts = describe(weights, base, applied)
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(as_lines(facts)))


def _base_of(
    weights: "UnlearnedWeights", model: str | None
) -> "DiffusionParts | StoredParts | None":
    """Return the parts to compare with, or None; without --model nothing is downloaded."""
    name = model or weights.metadata.get("ine.base")
    if not name:
        return None
    from ine.errors import ModelError
    from ine.models.parts import find_model
    from ine.models.stored import stored_parts

    try:
        place = find_model(name, fetch=bool(model))
    except ModelError:
        if model:
            raise
        log.warning("the base %s is not on this machine, so what differs is unknown", name)
        return None
    source = "--model" if model else "the file"
    if not place.is_dir():
        return load_base(name, source, "cpu", "float32")
    log.info("base model %s (from %s)", name, source)
    return stored_parts(name, place)


@unet.command()
@click.argument("files", nargs=-1, required=True, type=options.UnetFile())
@click.option("--out", required=True, type=options.OutPath(), help="The .safetensors to write.")
@click.option(
    "--single-file",
    is_flag=True,
    help="Write a whole model for UIs: UNet, VAE and text encoders under CompVis names.",
)
@options.model
@options.dtype
@options.force
@options.json_output
def export(
    files: tuple[Layer, ...],
    out: Path,
    single_file: bool,
    model: str | None,
    dtype: str,
    force: bool,
    as_json: bool,
) -> None:
    """Merge FILES, each FILE or FILE:WEIGHT, into their base and write one safetensors file.

    Without --single-file it holds the UNet under diffusers' names, as
    `unet/diffusion_pytorch_model.safetensors` of a pipeline folder does.
    """
    from ine.errors import OutputError
    from ine.files import check_free

    if out.suffix != ".safetensors":
        raise OutputError(f"{out}: expected a name that ends in .safetensors")
    check_free(out, force)
    layers = as_unet(files) or Path()  # FILES is required
    claim_file(out)
    chosen = ModelOptions(model=model, unet=layers).choose()
    base = load_base(chosen.name, chosen.origin, "cpu", "float32")
    facts = _write(base, layers, out, single_file, dtype)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"wrote {out}: {facts['tensors']} tensors, {facts['holds']}, {facts['dtype']}")


def _write(
    base: "DiffusionParts",
    layers: "Path | WeightStack",
    out: Path,
    single_file: bool,
    dtype: str,
) -> dict[str, Any]:
    """Write the merged model; return what was written, for JSON."""
    from ine import __version__
    from ine.runtime import pick_dtype
    from ine.weights.apply import apply_weights
    from ine.weights.compvis import single_file as compvis_tensors
    from ine.weights.files import write_unet_weights

    merged, weights = apply_weights(base, layers, keep_base=False)
    if not weights.is_base:
        log.info("%s", weights.describe())
    if weights.encoder_changed and not single_file:
        log.warning("the text encoder differs too, but this file holds the U-Net only")
    metadata = {key: weights.metadata[key] for key in KEPT if key in weights.metadata}
    metadata |= {"format": "pt", "ine.base": base.name}
    metadata |= {"ine.unet": merged.unet_name, "ine.version": __version__}
    holds, state = "UNet under diffusers' names", merged.unet.state_dict()
    if single_file:
        encoders = "text encoder" if len(merged.text_encoders) == 1 else "both text encoders"
        holds, state = f"UNet, VAE and {encoders} under CompVis names", compvis_tensors(merged)
        metadata |= _modelspec(merged)
    wanted = pick_dtype(dtype, base.device)
    write_unet_weights(out, state, metadata, wanted)
    return {
        "out": str(out),
        "base": base.name,
        "unet": merged.unet_name,
        "tensors": len(state),
        "differing": weights.changed,
        "holds": holds,
        "dtype": str(wanted).removeprefix("torch."),
    }


def _modelspec(parts: "DiffusionParts") -> dict[str, str]:
    """Return the header by which UIs and `ine` know what a single file predicts."""
    architecture, _ = parts.family_info.modelspec(parts.prediction_type)
    if architecture and parts.unet.config.in_channels == 9:
        architecture += "/inpainting"
    said = {"modelspec.prediction_type": "v" if parts.prediction_type != "epsilon" else "epsilon"}
    return said | ({"modelspec.architecture": architecture} if architecture else {})
