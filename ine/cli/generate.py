"""`ine generate`: make pictures, with an embedding as the negative."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import choose, options
from ine.cli.command import IneCommand, expert
from ine.cli.generate_plan import plan_of, print_plan
from ine.cli.guiding import DefenceOptions, defending
from ine.cli.model import ChosenModel, ModelOptions
from ine.cli.progress import bar
from ine.cli.refining_options import RefiningOptions, UnitRefiner, refining_too
from ine.cli.rewriting_options import RewritingOptions, rewriting
from ine.cli.sampling import SamplingOptions
from ine.cli.writing import claim_folder

if TYPE_CHECKING:
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.guidance.protocol import Guidance
    from ine.models.parts import DiffusionParts
    from ine.posi.requests import RewrittenRequests
    from ine.prompts.rows import PromptRow
    from ine.sampling import PictureRequest, SamplerSettings, Unit
    from ine.text.encode import TextOptions
    from ine.weights.stack import Layer, WeightStack

log = logging.getLogger("ine")

DEFAULT_MODEL = "mini"


@click.command(cls=IneCommand)
@click.option(
    "--prompt",
    "given",
    multiple=True,
    metavar="TEXT",
    help="A prompt; may be repeated. '' is unconditional.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts: a text file with one per line, a csv, jsonl or json file, or a set such as "
    "mini:fire/benign (see `ine prompts`). A row's own seed is used, unless --seed is given.",
)
@options.prompt_rows
@defending
@options.opening
@options.seed
@expert(
    "--images-per-prompt",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Pictures per prompt, with seeds that count up.",
)
@options.sampler_and_clip_skip
@rewriting
@refining_too
@expert(
    "--withhold",
    is_flag=True,
    help="Grey where the gate finds the concept after the last restart too.",
)
@expert("--width", type=click.IntRange(1), metavar="PIXELS", help="Width; else the model's own.")
@expert("--height", type=click.IntRange(1), metavar="PIXELS", help="Height, likewise.")
@click.option(
    "--out",
    type=options.OutPath(),
    default=Path("pictures"),
    show_default=True,
    help="Folder for pictures, index and contact sheet.",
)
@options.force
@options.dry_run
@options.json_output
def generate(
    given: tuple[str, ...],
    prompts: Path | None,
    filters: Mapping[str, Any],
    defence: DefenceOptions,
    model: ModelOptions,
    seed: int,
    images_per_prompt: int,
    sampling: SamplingOptions,
    rewriting: RewritingOptions,
    refining: RefiningOptions,
    withhold: bool,
    width: int | None,
    height: int | None,
    out: Path,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    r"""Make pictures. The negative is text, embeddings, or both in one string.

    Prompts and negative may have weights, as UIs read them: (words:1.2), (words) for 1.1, [words]
    for 1/1.1; \( and \[ are literal brackets. So "(fire-neg:1.3), blurry" works. Embeddings may
    be named as UIs name them: fire-neg, embedding:fire-neg, <fire-neg>, <embed:fire-neg>.

    Every picture has its own seed, in its name and inside it. Give an interrupted command again
    to resume it. With an embedding or weights of a recipe about people, the contact sheet blurs
    what that recipe's detector flags; the pictures themselves stay as they are.

    With --rewrite a language model reads every prompt first; where its answer cannot be used, the
    picture is grey. With --refine the pictures are those after the last round, see `ine refine`.
    """
    rows = choose.read_prompt_rows(given, prompts, filters, unconditional=True)
    embeddings = defence.embeddings()
    chosen = model.choose(embeddings, default=DEFAULT_MODEL)
    requests = _requests(rows, seed, images_per_prompt)
    sampling = defence.settled(sampling)
    planned = rewriting.planned()
    if dry_run:
        plan = plan_of(chosen, defence, sampling, (width, height), requests, out)
        print_plan(plan, as_json)
        return
    claim_folder(out)
    parts = chosen.open(keep_base=False).parts.of_size(width, height)
    sampler = sampling.settings(parts)
    method = defence.build(parts, sampler, embeddings)
    _check_withheld(withhold, method)
    run = _Run(
        out=out,
        parts=parts,
        method=method,
        sampler=sampler,
        requests=requests,
        force=force,
        refiner=refining.refiner(model.device, out),
        rewriter=planned.name if planned else "",
        rewritten=rewriting.rewritten(requests, model.device, out),
        withhold=withhold,
    )
    _print_made(_fill(run, chosen), out, as_json)


def _check_withheld(withhold: bool, method: "Guidance") -> None:
    """Raise a usage error where nothing would find what is to be withheld."""
    if withhold and len(method.attempts) < 2:
        raise click.UsageError(
            "--withhold needs restarts, after the last of which the gate looks once more: use an "
            "embedding of ine defend, or give --gate FILE and --restart"
        )


def _requests(
    rows: Sequence["PromptRow"], seed: int, images_per_prompt: int
) -> tuple["PictureRequest", ...]:
    """Return the pictures to make, in the order of the prompts."""
    from ine.sampling import PictureRequest

    return tuple(
        PictureRequest(prompt=row.prompt, seed=first + k)
        for row, first in zip(rows, _seeds(rows, seed), strict=True)
        for k in range(images_per_prompt)
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """All that decides the pictures of a folder."""

    out: Path
    parts: "DiffusionParts"
    method: "Guidance"
    sampler: "SamplerSettings"
    requests: tuple["PictureRequest", ...]
    force: bool
    refiner: UnitRefiner | None = None
    rewriter: str = ""
    rewritten: "RewrittenRequests | None" = None
    """What is sampled in the place of the requests; None is the requests."""

    withhold: bool = False
    """Whether pictures are grey in which the concept shows to the last."""

    @property
    def asked(self) -> tuple["PictureRequest", ...]:
        """Return what is sampled."""
        return self.rewritten.asked if self.rewritten else self.requests

    def settings(self) -> dict[str, Any]:
        """Return what besides prompt and seed decides the pixels, for the files."""
        from ine.guidance.table import describe
        from ine.weights.fingerprint import exact_digest

        parts, sampler = self.parts, self.sampler
        negative = self.method.negative.prompt()
        texts = [*(request.prompt for request in self.asked), negative]
        return {
            "model": parts.name,
            "unet": parts.unet_name,
            "weights": exact_digest([parts.unet, parts.vae, *parts.text_encoders]),
            "negative": negative,
            "guidance": describe(self.method),
            "scheduler": sampler.scheduler,
            "steps": sampler.steps,
            "guidance_scale": sampler.guidance_scale,
            **_size_record(parts),
            **_reading_record(sampler.reading, texts),
            **({"rewrite": self.rewriter} if self.rewriter else {}),
            **(self.refiner.about(negative) if self.refiner else {}),
            **({"withhold": True} if self.withhold else {}),
        }

    def after(self, unit: "Unit") -> "Unit":
        """Return what is written of a unit: refined, and grey in the place of what is withheld."""
        from ine.guidance.attempts import left_in
        from ine.sampling import greyed

        if self.refiner:
            unit = self.refiner.unit(unit, self.parts, self.method, self.sampler)
        if self.withhold:
            unit = greyed(unit, left_in(unit.notes))
        return self.rewritten.withheld(unit) if self.rewritten else unit


def _fill(run: _Run, chosen: ChosenModel) -> list[dict[str, Any]]:
    """Make the pictures with a progress bar; return the rows of the index."""
    from ine.gallery.fill import fill_gallery
    from ine.gallery.flagging import flagger_for
    from ine.gallery.index import GalleryPlan

    with bar(len(run.requests), "pictures") as update:
        return fill_gallery(
            run.out,
            run.parts,
            GalleryPlan(requests=run.requests, settings=run.settings()),
            run.method,
            run.sampler,
            force=run.force,
            progress=lambda done, wanted: update(done),
            flagger=flagger_for(*_people(chosen.embeddings, chosen.options.unet)),
            after=run.after,
            asked=run.asked,
        )


def _print_made(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Print what was made."""
    from ine.finite import redone_line
    from ine.gallery.index import BLANK
    from ine.guidance.attempts import left_in
    from ine.pictures import blank_line

    blank, left = sum(row.get(BLANK, False) for row in rows), left_in(rows)
    if as_json:
        found = {"out": str(out), BLANK: blank, "left": len(left), "pictures": rows}
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    click.echo(f"wrote {len(rows)} pictures to {out} (sheet.png, index.jsonl), {blank} blank")
    for line in filter(None, (redone_line(rows), blank_line(blank, len(rows)))):
        click.echo(line)
    if left:
        log.warning(_left_line([rows[i] for i in left], len(rows)))


def _left_line(left: Sequence[Mapping[str, Any]], count: int) -> str:
    """Return what is said of pictures in which the concept shows to the last."""
    names = ", ".join(row["file"] for row in left[:3]) + (", ..." if len(left) > 3 else "")
    done = "they are grey" if left[0]["settings"].get("withhold") else "--withhold makes them grey"
    return (
        f"in {len(left)} of {count} pictures the gate finds the concept after the last restart too "
        f"({names}); {done}"
    )


def _size_record(parts: "DiffusionParts") -> dict[str, int]:
    """Return width and height of pictures in pixels; {} if they are the model's own."""
    if not parts.latent_size:
        return {}
    height, width = (side * parts.pixels_per_latent for side in parts.latent_shape[1:])
    return {"width": width, "height": height}


def _seeds(rows: Sequence["PromptRow"], seed: int) -> list[int]:
    """Return the first seed of each row, its own unless `--seed` was given; log which it is."""
    context = click.get_current_context()
    asked = context.get_parameter_source("seed") is not click.core.ParameterSource.DEFAULT
    own = sum(row.seed is not None for row in rows)
    if own and asked:
        log.info("seeds: %d for all prompts (--seed), not those of the file", seed)
    elif own:
        others = f", the others {seed}" if own < len(rows) else ""
        log.info("seeds: %d of %d prompts have their own%s", own, len(rows), others)
    if any(row.guidance or row.width or row.height for row in rows):
        log.info(
            "note: guidance and size in the prompt file are not used by this command; "
            "--guidance-scale, --width and --height apply to all pictures"
        )
    return [seed if asked or row.seed is None else row.seed for row in rows]


def _reading_record(reading: "TextOptions", texts: Sequence[str]) -> dict[str, Any]:
    """Return what in a `TextOptions` decides pixels of these texts, defaults left out.

    Leaving them out lets folders resume that are older than weights in prompts.
    """
    from ine.text.syntax import Piece, read_weights

    record: dict[str, Any] = {} if reading.clip_skip == 1 else {"clip_skip": reading.clip_skip}
    if any(read_weights(text) != (Piece(text),) for text in texts if text):
        record["prompt_weights"] = True
    if any(re.search(r"embedding:|<[\w:-]+>", text) for text in texts):
        record["embedding_names"] = True
    return record


def _people(
    embeddings: Sequence["ConceptEmbedding"], unet: "Path | Layer | WeightStack | None"
) -> tuple[list[str], list[str]]:
    """Return (concepts, rules) by which pictures are flagged, from the headers of the files."""
    from ine.weights.read import weights_metadata

    concepts = [e.concept for e in embeddings]
    if unet:
        from ine.weights.stack import layers_of

        # Of several files each may be about people.
        concepts += [weights_metadata(f.path).get("ine.concept", "") for f in layers_of(unet)]
    about_people = [e.metadata for e in embeddings if e.metadata.get("ine.people") == "true"]
    return concepts, [about["ine.rule"] for about in about_people if "ine.rule" in about]
