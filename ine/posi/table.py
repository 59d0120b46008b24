"""Rewriters of prompts by name: KIND:WHAT, one row per kind.

`teacher:CONCEPT` follows the rules of the bundled model's world, `openai:URL#MODEL` asks a server,
`model:BASE+ADAPTER` is a language model that was trained here, with the folders of its adapters in
the order of their stages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ine.errors import ObserverError, did_you_mean
from ine.observers.table import ObserverSettings, asker_name, load_asker
from ine.posi.pair_files import INSTRUCTION
from ine.posi.rewriters import AskingRewriter, PromptRewriter, RuleRewriter
from ine.refining.teacher import teacher_of
from ine.store.units import key_of

FORMS = "teacher:CONCEPT, openai:URL#MODEL or model:BASE+ADAPTER"


@dataclass(frozen=True, kw_only=True)
class RewriteSettings:
    """What a rewriter is asked, and how a local model draws its answer."""

    instruction: str | None = None
    """None is what a local model learned with, else a sentence of our own."""

    temperature: float = 0.95
    """0 always takes the likeliest word."""

    max_tokens: int = 128
    seed: int = 0


@dataclass(frozen=True)
class _Kind:
    """How rewriters of a kind are loaded and named; both take the text after the colon."""

    load: Callable[[str, RewriteSettings, ObserverSettings], PromptRewriter]
    name: Callable[[str, RewriteSettings], str]


def folders_of(what: str) -> tuple[Path, tuple[Path, ...]]:
    """Return (base, adapters) of what follows "model:".

    A folder whose name holds a plus is taken as it is.
    """
    if Path(what).is_dir():
        return Path(what), ()
    base, *adapters = what.split("+")
    return Path(base), tuple(map(Path, adapters))


def _server(what: str, settings: RewriteSettings, how: ObserverSettings) -> PromptRewriter:
    asked = settings.instruction or INSTRUCTION
    return AskingRewriter(load_asker(f"openai:{what}", how), asked, settings.max_tokens)


def _name_of_server(what: str, settings: RewriteSettings) -> str:
    asked = key_of(instruction=settings.instruction or INSTRUCTION, tokens=settings.max_tokens)
    return f"{asker_name(f'openai:{what}')} {asked[:8]}"


def load_model(
    base: Path, adapters: Sequence[Path], settings: RewriteSettings, device: str
) -> PromptRewriter:
    """Return a language model that was trained here as a rewriter.

    Args:
        base: Its folder.
        adapters: Folders of what was trained on it, in the order of their stages.
        settings: What it is asked, and how its answers are drawn.
        device: See `ine.runtime.pick_device`.

    Raises:
        CheckpointError: An adapter is missing, damaged, or of another base.
        MissingDependency: A package that it needs is missing.
        ModelError: The model cannot be loaded.
    """
    from ine.posi.trained import asking_for, load_trained
    from ine.training.answers import Drawing

    return load_trained(
        base,
        adapters,
        asking=asking_for(adapters, settings.instruction),
        drawing=Drawing(temperature=settings.temperature, max_tokens=settings.max_tokens),
        seed=settings.seed,
        device=device,
    )


def _model(what: str, settings: RewriteSettings, how: ObserverSettings) -> PromptRewriter:
    return load_model(*folders_of(what), settings, how.device)


def _name_of_model(what: str, settings: RewriteSettings) -> str:
    from ine.posi.trained import asking_for, name_of
    from ine.training.answers import Drawing

    base, adapters = folders_of(what)
    drawing = Drawing(temperature=settings.temperature, max_tokens=settings.max_tokens)
    return name_of(
        base, adapters, asking_for(adapters, settings.instruction), drawing, settings.seed
    )


def _rules(what: str) -> RuleRewriter:
    return RuleRewriter(teacher_of(what))


KINDS: dict[str, _Kind] = {
    "teacher": _Kind(
        load=lambda what, settings, how: _rules(what), name=lambda what, settings: _rules(what).name
    ),
    "openai": _Kind(load=_server, name=_name_of_server),
    "model": _Kind(load=_model, name=_name_of_model),
}


def parse_rewriter(spec: str) -> tuple[str, str]:
    """Return (kind, what follows the colon) of a rewriter's name.

    Raises:
        ObserverError: It has another form, or no kind has that name.
    """
    kind, _, what = spec.partition(":")
    if kind in KINDS and what:
        return kind, what
    # Of an unknown kind only that is repeated: the rest may hold a key.
    shown = spec if kind in KINDS else kind
    hint = did_you_mean(kind, KINDS) if kind not in KINDS else ""
    raise ObserverError(f"rewriter {shown!r} is unknown{hint}; expected {FORMS}")


def load_rewriter(
    spec: str, settings: RewriteSettings | None = None, how: ObserverSettings | None = None
) -> PromptRewriter:
    """Return a rewriter by name.

    Args:
        spec: See the top of this module.
        settings: What it is asked.
        how: How it runs.

    Raises:
        CheckpointError: An adapter is missing, damaged, or of another base.
        MissingDependency: A package that it needs is missing.
        ModelError: A local model cannot be loaded.
        ObserverError: The name has another form, or the server cannot be reached.
        RecipeError: A teacher's concept is unknown.
    """
    kind, what = parse_rewriter(spec)
    return KINDS[kind].load(what, settings or RewriteSettings(), how or ObserverSettings())


def rewriter_name(spec: str, settings: RewriteSettings | None = None) -> str:
    """Return what tells a rewriter's answers from those of others; no weights are loaded.

    Raises:
        IneError: As `load_rewriter`, where that shows without loading.
    """
    kind, what = parse_rewriter(spec)
    return KINDS[kind].name(what, settings or RewriteSettings())


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """A rewriter as it is planned: nothing is loaded."""

    spec: str
    """See the top of this module; folders are absolute."""

    name: str
    """What tells its answers from those of others."""

    settings: RewriteSettings

    def load(self, how: ObserverSettings) -> PromptRewriter:
        """Return the rewriter; raises as `load_rewriter`."""
        return load_rewriter(self.spec, self.settings, how)


def rewriting_of(
    spec: str,
    settings: RewriteSettings | None = None,
    place: Callable[[str], Path] | None = None,
) -> Rewriting:
    """Return a rewriter as it is planned.

    Args:
        spec: See the top of this module.
        settings: What it is asked.
        place: Where a folder's name is looked for, by default in the current folder.

    Raises:
        IneError: As `rewriter_name`.
    """
    settings = settings or RewriteSettings()
    kind, what = parse_rewriter(spec)
    if kind == "model" and place:
        base, adapters = folders_of(str(place(what)) if place(what).is_dir() else what)
        what = "+".join(str(place(str(folder))) for folder in (base, *adapters))
    spec = f"{kind}:{what}"
    return Rewriting(spec=spec, name=rewriter_name(spec, settings), settings=settings)
