"""Observers by name: KIND:WHAT, one row per kind.

`judge:RULE` or `judge:DETECTOR`, `vlm:FOLDER`, `vlm:HUB_ID` or the bundled `vlm:mini-eyes`,
`openai:URL#MODEL`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ine.errors import ObserverError, did_you_mean
from ine.observers.asking import Asker, AskingObserver
from ine.observers.base import Observer
from ine.observers.judge import load_judge
from ine.observers.question import Question


@dataclass(frozen=True, kw_only=True)
class ObserverSettings:
    """How observers run; each kind uses the fields that concern it."""

    device: str = "auto"
    """Of a local model, see `ine.runtime.pick_device`."""

    batch: int = 8
    """Pictures at a time, of a local model."""

    padding: Literal["left", "right"] = "left"
    """Side on which a local model's shorter conversations are padded."""

    parallel: int = 4
    """Requests at once, of a server."""

    timeout: float = 60.0
    """Seconds until a request to a server is given up."""

    retries: int = 2
    """Times that a request to a server is repeated."""

    cache: Path | None = None
    """Folder of replies of models, see `ine.observers.cache`; None keeps none."""


Load = Callable[[str, Sequence[Question], ObserverSettings], Observer]
LoadAsker = Callable[[str, ObserverSettings], Asker]


def _vlm(what: str, settings: ObserverSettings) -> Asker:
    from ine.observers.vlm_loading import load_vlm

    return load_vlm(what, settings.device, settings.batch, settings.padding)


def _openai(what: str, settings: ObserverSettings) -> Asker:
    from ine.observers.server_opening import open_server

    return open_server(what, settings.parallel, settings.timeout, settings.retries)


ASKERS: dict[str, LoadAsker] = {"vlm": _vlm, "openai": _openai}
"""Kind of a model that takes part in conversations -> function that loads one."""


def _asking(kind: str) -> Load:
    def load(what: str, questions: Sequence[Question], settings: ObserverSettings) -> Observer:
        return AskingObserver(load_asker(f"{kind}:{what}", settings), questions)

    return load


OBSERVERS: dict[str, Load] = {
    "judge": lambda what, questions, settings: load_judge(what, questions),
    **{kind: _asking(kind) for kind in ASKERS},
}
"""Kind -> function that loads one; it takes the text after the colon."""

FORMS = "judge:RULE, judge:DETECTOR, vlm:FOLDER_OR_ID, openai:URL#MODEL"


def parse_spec(spec: str) -> tuple[str, str]:
    """Return (kind, what follows the colon) of an observer's name.

    Raises:
        ObserverError: It has another form, or no kind has that name.
    """
    kind, colon, what = spec.partition(":")
    if kind not in OBSERVERS or not colon or not what:
        hint = did_you_mean(kind, OBSERVERS) if kind not in OBSERVERS else ""
        # Of an unknown kind only that is repeated: the rest may hold a key.
        shown = repr(spec if kind in OBSERVERS else kind)
        raise ObserverError(f"observer {shown} cannot be read{hint}; expected one of {FORMS}")
    return kind, what


def load_observer(
    spec: str, questions: Sequence[Question], settings: ObserverSettings | None = None
) -> Observer:
    """Return an observer by name.

    Args:
        spec: See the top of this module.
        questions: One per concept, see `ine.observers.question.question_of`.
        settings: How it runs.

    Raises:
        ObserverError: It has another form, cannot be reached or loaded, or cannot look at
            pictures.
        RecipeError: A judge's rule or detector is unknown.
        MissingDependency: A package or weights that it needs are missing.
        ValueError: No question is given, or two are of one concept.
    """
    names = [one.concept for one in questions]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"questions are of {names}; give one per concept")
    kind, what = parse_spec(spec)
    return OBSERVERS[kind](what, questions, settings or ObserverSettings())


def load_asker(spec: str, settings: ObserverSettings | None = None) -> Asker:
    """Return a model by name that takes part in any conversation, its replies kept if asked for.

    Args:
        spec: `vlm:FOLDER_OR_ID` or `openai:URL#MODEL`.
        settings: How it runs.

    Raises:
        ObserverError: It has another form, or cannot be reached or loaded.
        MissingDependency: A package that it needs is missing.
    """
    from ine.observers.cache import CachedAsker

    settings = settings or ObserverSettings()
    kind, what = _parse_asker(spec)
    asker = ASKERS[kind](what, settings)
    return CachedAsker(asker, settings.cache) if settings.cache else asker


def asker_name(spec: str, settings: ObserverSettings | None = None) -> str:
    """Return the name that the model of `load_asker` has; no weights are read, no server is asked.

    Raises:
        ObserverError: It has another form, or there is no such folder.
    """
    from ine.observers.server_opening import split_address
    from ine.observers.vlm_loading import name_of

    kind, what = _parse_asker(spec)
    if kind == "vlm":
        return name_of(what, (settings or ObserverSettings()).padding)
    url, model = split_address(what)
    return f"openai:{url}#{model}"


def _parse_asker(spec: str) -> tuple[str, str]:
    kind, what = parse_spec(spec)
    if kind not in ASKERS:
        raise ObserverError(
            f"observer {spec!r}: takes part in no conversation; expected a model, "
            f"{' or '.join(f'{kind}:...' for kind in ASKERS)}"
        )
    return kind, what
