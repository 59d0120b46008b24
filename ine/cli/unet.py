"""`ine unet`: what is in a file of unlearned weights, and the merged UNet for other programs."""

import json
import logging
from pathlib import Path

import click

from ine.cli import choose, options
from ine.cli.printing import printable
from ine.models.stack import as_unet

log = logging.getLogger("ine")

BAR = 40
"""Width of the longest bar in characters."""

KEPT = ("ine.method", "ine.concept")
"""Metadata of the file that its merged copy keeps."""


@click.group()
def unet():
    """Look into unlearned weights, or merge them for other programs."""


@unet.command()
@click.argument("file", type=click.Path(path_type=Path))
@options.model
@options.json_output
def show(file, model, as_json):
    """Show what FILE is recognised as, what it changes, where and by how much.

    What it changes is known only against a base: that of --model, else the one that the file
    names, if it is on this machine.
    """
    from ine.models.checkpoints import lay_weights, read_weights

    weights = read_weights(file)
    base = _base_of(weights, model)
    laid = None
    if base:
        laid, weights = lay_weights(base, file)
    facts = describe(weights, base, laid)
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(as_lines(facts)))


def _base_of(weights, model):
    """Return the parts to compare with, or None; nothing is downloaded for a look."""
    from ine.errors import ModelError
    from ine.models.parts import find_model

    name = model or weights.metadata.get("ine.base")
    if not name:
        return None
    if not model:
        try:
            find_model(name, fetch=False)
        except ModelError:
            log.warning("the base %s is not on this machine; what differs is not known", name)
            return None
    return choose.load_base(name, "--model" if model else "the file", "cpu", "float32")


def describe(weights, base=None, laid=None):
    """Return the facts of `UnlearnedWeights` as plain values for JSON.

    Args:
        weights: As read, or as laid where there is a base.
        base: The parts that it was laid over.
        laid: The result.
    """
    from ine.models.anatomy import block_of, change_sizes, dtypes_of, family_of, kind_of
    from ine.models.lowrank import LowRank

    values = [*weights.tensors.values(), *(weights.text_encoder or {}).values()]
    encoders = len(weights.text_encoder or {})
    change = {}
    if base:
        for title, group in (("block", block_of), ("kind", kind_of)):
            found = change_sizes(base.unet, laid.unet, weights.differing, group)
            change[title] = {name: float(f"{size:.4g}") for name, size in found.items()}
    return {
        "file": str(weights.path),
        "layout": weights.layout,
        "family": base.family if base else family_of(weights) or None,
        "method": weights.method or None,
        "declared": "ine.method" in weights.metadata,
        "concept": weights.metadata.get("ine.concept"),
        "base": base.name if base else None,
        "tensors": {
            "replaced": weights.replaced,
            "added": weights.added,
            "total": weights.total,
            "differing": weights.changed,
            "text_encoder": encoders,
            "text_encoder_differing": weights.encoder_changed if base else None,
        },
        "ranks": sorted({value.rank for value in values if isinstance(value, LowRank)}),
        "parameters": sum(value.numel() for value in values),
        "dtypes": dtypes_of(weights),
        "metadata": dict(sorted(weights.metadata.items())),
        "change": change,
    }


def as_lines(facts):
    """Return the facts as lines for a person."""
    counts = facts["tensors"]
    source = "by its metadata" if facts["declared"] else "likely"
    rows = {
        "file": facts["file"],
        "layout": facts["layout"],
        "family": facts["family"] or "not told by these tensors",
        "method": f"{facts['method']} ({source})" if facts["method"] else "not known",
        "concept": facts["concept"] or "not stated",
        "base": facts["base"] or "none to compare with; give --model",
        "UNet": _counted(counts),
        "encoder": _encoders(counts, facts["base"]),
        "rank": ", ".join(map(str, facts["ranks"])),
        "dtype": ", ".join(f"{n} x {name}" for name, n in facts["dtypes"].items()),
        "size": f"{facts['parameters']:,} parameters",
    }
    lines = [f"{name:<10}{printable(value)}" for name, value in rows.items() if value]
    lines += [f"{'metadata':<10}{printable(f'{k}: {v}')}" for k, v in facts["metadata"].items()]
    for title, sizes in facts["change"].items():
        lines += ["", f"change by {title}, |new - base| / |base|", *bars(sizes)]
    return lines


def _counted(counts):
    verbs = [(counts["replaced"], "replaced"), (counts["added"], "added to")]
    text = ", ".join(f"{n} {verb}" for n, verb in verbs if n) or "no tensors"
    if counts["differing"] is None:
        return text
    return f"{text}, of {counts['total']}; {counts['differing']} really differ"


def _encoders(counts, base):
    if base:
        n = counts["text_encoder_differing"]
        return f"{n} tensors really differ" if n else ""
    return f"{counts['text_encoder']} tensors" if counts["text_encoder"] else ""


def bars(sizes):
    """Return one line for each name: a bar, as long as its share of the largest, and the size."""
    widest = max(map(len, sizes), default=0)
    most = max(sizes.values(), default=0) or 1
    return [
        f"{name:<{widest}}  {'#' * _length(size / most):<{BAR}}  {size:.4f}"
        for name, size in sizes.items()
    ]


def _length(share):
    """Return a bar's length; what is not zero shows."""
    return max(round(share * BAR), 1) if share > 0 else 0


@unet.command()
@click.argument("files", nargs=-1, required=True, type=options.UnetFile())
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The .safetensors to write."
)
@click.option(
    "--single-file",
    is_flag=True,
    help="Write a whole model for UIs: UNet, VAE and text encoders under CompVis names.",
)
@options.model
@options.dtype
@options.force
@options.json_output
def export(files, out, single_file, model, dtype, force, as_json):
    """Merge FILES, each FILE or FILE:WEIGHT, into their base and write one safetensors file.

    Without --single-file it holds the UNet under diffusers' names, as
    `unet/diffusion_pytorch_model.safetensors` of a pipeline folder does.
    """
    from ine.errors import OutputError
    from ine.files import check_free

    if out.suffix != ".safetensors":
        raise OutputError(f"{out}: expected a name that ends in .safetensors")
    check_free(out, force)
    layers = as_unet(files)
    name, source = choose.base_name(model, unet=layers)
    base = choose.load_base(name, source, "cpu", "float32")
    facts = _write(base, layers, out, single_file, dtype)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"wrote {out}: {facts['tensors']} tensors, {facts['holds']}, {facts['dtype']}")


def _write(base, layers, out, single_file, dtype):
    """Write the merged model; return what was written, for JSON."""
    from ine import __version__
    from ine.models.checkpoints import lay_weights, write_unet_weights
    from ine.models.compvis import single_file as compvis_tensors
    from ine.runtime import pick_dtype

    laid, weights = lay_weights(base, layers, keep_base=False)
    if not weights.is_base:
        log.info("%s", weights.describe())
    if weights.encoder_changed and not single_file:
        log.warning("the text encoder differs too, and is not in this file, which has the UNet")
    kept = {key: weights.metadata[key] for key in KEPT if key in weights.metadata}
    metadata = kept | {
        "format": "pt",
        "ine.base": base.name,
        "ine.unet": laid.unet_name,
        "ine.version": __version__,
    }
    holds, state = "UNet under diffusers' names", laid.unet.state_dict()
    if single_file:
        encoders = "text encoder" if len(laid.text_encoders) == 1 else "both text encoders"
        holds, state = f"UNet, VAE and {encoders} under CompVis names", compvis_tensors(laid)
        metadata |= _modelspec(laid)
    wanted = pick_dtype(dtype, base.device)
    write_unet_weights(out, state, metadata, wanted)
    return {
        "out": str(out),
        "base": base.name,
        "unet": laid.unet_name,
        "tensors": len(state),
        "differing": weights.changed,
        "holds": holds,
        "dtype": str(wanted).removeprefix("torch."),
    }


def _modelspec(parts):
    """Return what a single file says of itself, by which UIs and `ine` know what it predicts."""
    architecture, _ = parts.traits.modelspec(parts.prediction_type)
    if architecture and parts.unet.config.in_channels == 9:
        architecture += "/inpainting"
    said = {"modelspec.prediction_type": "v" if parts.prediction_type != "epsilon" else "epsilon"}
    return said | ({"modelspec.architecture": architecture} if architecture else {})
