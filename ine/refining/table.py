"""Rewriters by name: KIND:WHAT, one row per kind.

`vlm:FOLDER_OR_ID` and `openai:URL#MODEL` are the observers' models, asked to rewrite;
`teacher:CONCEPT` follows rules, for the bundled model's world.
"""

from collections.abc import Callable
from dataclasses import replace

from ine.errors import ObserverError, did_you_mean
from ine.observers.table import ASKERS, ObserverSettings, asker_name, load_asker
from ine.refining.asking import AskingRewriter, Rewriter
from ine.refining.settings import RefineSettings
from ine.refining.teacher import load_teacher, teacher_of

Load = Callable[[str, RefineSettings, ObserverSettings], Rewriter]

FORMS = "vlm:FOLDER_OR_ID, openai:URL#MODEL, teacher:CONCEPT"


def _asking(kind: str) -> Load:
    def load(what: str, settings: RefineSettings, how: ObserverSettings) -> Rewriter:
        own = replace(how, padding=settings.padding, batch=settings.batch)
        if settings.padding == "right":
            # A reply depends on the others of its batch, which a kept one would not be in.
            own = replace(own, cache=None)
        return AskingRewriter(load_asker(f"{kind}:{what}", own), settings)

    return load


REWRITERS: dict[str, Load] = {
    **{kind: _asking(kind) for kind in ASKERS},
    "teacher": lambda what, settings, how: load_teacher(what),
}
"""Kind -> function that loads one; it takes the text after the colon."""


def parse_rewriter(spec: str) -> tuple[str, str]:
    """Return (kind, what follows the colon) of a rewriter's name.

    Raises:
        ObserverError: It has another form, or no kind has that name.
    """
    kind, colon, what = spec.partition(":")
    if kind == "judge":
        raise ObserverError(
            "observer judge: a judge says what it sees and cannot rewrite; expected one of "
            f"{FORMS} (teacher:CONCEPT is the bundled model's judge with rules that rewrite)"
        )
    if kind not in REWRITERS or not colon or not what:
        hint = did_you_mean(kind, REWRITERS) if kind not in REWRITERS else ""
        # Of an unknown kind only that is repeated: the rest may hold a key.
        shown = repr(spec if kind in REWRITERS else kind)
        raise ObserverError(f"observer {shown} cannot rewrite{hint}; expected one of {FORMS}")
    return kind, what


def load_rewriter(
    spec: str, settings: RefineSettings | None = None, how: ObserverSettings | None = None
) -> Rewriter:
    """Return a rewriter by name.

    Args:
        spec: See the top of this module.
        settings: What it is asked.
        how: How it runs.

    Raises:
        ObserverError: It has another form, or cannot be reached or loaded.
        RecipeError: A teacher's concept is unknown.
        MissingDependency: A package that it needs is missing.
    """
    kind, what = parse_rewriter(spec)
    return REWRITERS[kind](what, settings or RefineSettings(), how or ObserverSettings())


def rewriter_name(spec: str, settings: RefineSettings | None = None) -> str:
    """Return the name that a rewriter has when it is loaded; no weights are read.

    Raises:
        ObserverError: As `load_rewriter`, where that shows without loading.
        RecipeError: A teacher's concept is unknown.
    """
    kind, what = parse_rewriter(spec)
    if kind == "teacher":
        recipe = teacher_of(what).recipe
        return f"teacher:{recipe.name}@{recipe.hash}+judge:{recipe.pictures.rule}"
    padding = (settings or RefineSettings()).padding
    return asker_name(spec, ObserverSettings(padding=padding))


def rewriter_place(spec: str, settings: RefineSettings | None = None) -> str:
    """Return where a rewriter is; nothing is loaded, fetched or asked.

    Raises:
        ObserverError: As `load_rewriter`, where that shows without loading.
        RecipeError: A teacher's concept is unknown.
    """
    from ine.observers.vlm_loading import find_vlm

    kind, what = parse_rewriter(spec)
    if kind == "vlm":
        try:
            find_vlm(what, fetch=False)
        except LookupError:
            return f"not on this machine; it is fetched from the hub: hf download {what}"
    elif kind == "openai":
        return f"a server, which is not asked now: {rewriter_name(spec, settings)}"
    return f"on this machine: {rewriter_name(spec, settings)}"
