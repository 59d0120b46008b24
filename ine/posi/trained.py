"""A trained rewriter: a language model with the adapters of its stages merged into it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ine.errors import CheckpointError, ModelError
from ine.files import parse_json, read_within, sha256_of, write_json
from ine.observers.adapters import ABOUT, CONFIG, WEIGHTS, add_adapter, check_base
from ine.observers.vlm_loading import digest_of
from ine.posi.pair_files import INSTRUCTION
from ine.posi.recipe import Template
from ine.posi.rewriters import Rewrite, read_rewrite
from ine.runtime import generator_for
from ine.store.units import key_of
from ine.training.answers import Drawing, draw_answers
from ine.training.bases import Base, load_base
from ine.training.examples import asked_text

ASKED = "posi.json"
"""File beside an adapter: how the model was asked while it learned."""

BEFORE = "sft"
"""Folder inside a PPO adapter's: the adapter that was merged before it."""

LIMIT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a model is asked to rewrite."""

    instruction: str = INSTRUCTION
    template: Template = field(default_factory=Template)

    def query(self, processor: Any, prompt: str) -> str:
        """Return what the model reads, its first token included; raises as `check`."""
        self.check(processor)
        return asked_text(processor, self.template.asked(self.instruction, prompt))

    def check(self, processor: Any) -> None:
        """Raise if a model's own chat template is wanted and it has none.

        Raises:
            ModelError: It has none.
        """
        if self.template.text is None and getattr(processor, "chat_template", None) is None:
            raise ModelError(
                "the language model has no chat template, and none is given; give an adapter "
                "with the posi.json of its training, or a recipe with template.text"
            )

    def write(self, folder: Path) -> None:
        """Write it beside an adapter."""
        about = {"instruction": self.instruction, "template": self.template.model_dump()}
        write_json(folder / ASKED, about)


def asking_of(folder: Path) -> Asking | None:
    """Return how an adapter was asked while it learned, None of one made by others.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / ASKED
    if not path.is_file():
        return None
    try:
        about = parse_json(read_within(path, LIMIT))
        return Asking(
            instruction=about["instruction"], template=Template.model_validate(about["template"])
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); train again") from error


def asking_for(adapters: Sequence[Path], instruction: str | None = None) -> Asking:
    """Return how a model with adapters is asked: as the last that says so, else by default.

    Args:
        adapters: In the order of their stages.
        instruction: In the place of theirs.

    Raises:
        CheckpointError: A file beside one is damaged.
    """
    known = [found for folder in adapters if (found := asking_of(folder))]
    asking = known[-1] if known else Asking()
    return replace(asking, instruction=instruction) if instruction else asking


def stages_of(adapters: Sequence[Path]) -> list[Path]:
    """Return the adapters to merge, in order: before a stage's comes the one inside its folder."""
    found: list[Path] = []
    for folder in adapters:
        inside = folder / BEFORE
        found += [*stages_of([inside] if inside.is_dir() else []), folder]
    return found


def bring_along(adapters: Sequence[Path], out: Path) -> None:
    """Copy the adapters that a stage started from into its folder, each inside the next one's.

    Raises:
        OSError: They cannot be copied.
    """
    for folder in reversed(stages_of(adapters)):
        out = out / BEFORE
        out.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, WEIGHTS, ABOUT, ASKED):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)


def with_adapters(base: Base, adapters: Sequence[Path]) -> Base:
    """Return a base with adapters merged into its weights.

    Raises:
        CheckpointError: One is damaged, or of another base.
    """
    model = base.model
    for folder in stages_of(adapters):
        check_base(folder, base.digest)
        model = add_adapter(model, folder, digest=base.digest).merge_and_unload()
    return replace(base, model=model)


@dataclass(frozen=True, kw_only=True)
class TrainedRewriter:
    """Rewrites prompts by a language model; see `ine.posi.rewriters.PromptRewriter`."""

    base: Base
    asking: Asking
    name: str
    drawing: Drawing = field(default_factory=Drawing)
    seed: int = 0
    batch: int = 16

    def __call__(self, prompts: Sequence[str]) -> list[Rewrite]:
        """Return one rewrite per prompt; an answer that does not end is unusable.

        Raises:
            PromptError: A prompt does not fit into the model's context.
        """
        found: list[Rewrite] = []
        for first in range(0, len(prompts), self.batch):
            some = prompts[first : first + self.batch]
            # A prompt's random numbers are its own, wherever it stands.
            seeds = [generator_for(self.seed, "rewrite", prompt) for prompt in some]
            queries = [self.asking.query(self.base.processor, prompt) for prompt in some]
            model, tokenizer = self.base.model, self.base.tokenizer
            answers = draw_answers(model, tokenizer, queries, seeds, self.drawing)
            for prompt, text, ended in zip(some, answers.texts, answers.ended, strict=True):
                cut = Rewrite(prompt=prompt, unusable="cut off")
                found.append(read_rewrite(prompt, text) if ended else cut)
        return found


def load_trained(
    base: Path,
    adapters: Sequence[Path],
    *,
    asking: Asking | None = None,
    drawing: Drawing | None = None,
    seed: int = 0,
    device: str = "auto",
) -> TrainedRewriter:
    """Return a trained rewriter.

    Args:
        base: Folder of the language model.
        adapters: Of `ine posi train`, or of others in PEFT's layout, in the order of their stages.
        asking: By default what the last adapter says, else the default instruction in the model's
            chat template.
        drawing: How answers are drawn.
        seed: Of the drawing.
        device: See `ine.runtime.pick_device`.

    Raises:
        CheckpointError: An adapter is missing, damaged, or of another base.
        MissingDependency: peft is not installed.
        ModelError: The base cannot be loaded, or its tokenizer has no end of text.
    """
    asking = asking or asking_for(adapters)
    drawing = drawing or Drawing()
    name = name_of(base, adapters, asking, drawing, seed)
    loaded = with_adapters(load_base(base, device), adapters)
    asking.check(loaded.processor)
    return TrainedRewriter(base=loaded, asking=asking, name=name, drawing=drawing, seed=seed)


def name_of(
    base: Path, adapters: Sequence[Path], asking: Asking, drawing: Drawing, seed: int
) -> str:
    """Return the name of a trained rewriter, which its files decide; no weights are loaded.

    Raises:
        CheckpointError: An adapter is missing, damaged, or of another base.
        ModelError: There is no base.
    """
    if not (base / "config.json").is_file():
        raise ModelError(
            f"{base}: no language model there (config.json); `ine posi base mini` makes one"
        )
    digest = digest_of(base)
    stages = stages_of(adapters)
    for folder in stages:
        check_base(folder, digest)
    about = key_of(
        base=digest,
        adapters=[
            sha256_of((folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes())
            for folder in stages
        ],
        asking=[asking.instruction, asking.template.text],
        drawing=drawing.model_dump(),
        seed=seed,
    )
    return f"model:{about[:16]}"
