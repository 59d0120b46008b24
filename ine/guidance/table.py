"""Guidance methods by the name a user types; a new method is one class and one row here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass

from ine.embedding import ConceptEmbedding
from ine.errors import IneError, did_you_mean
from ine.guidance.additive import Additive
from ine.guidance.cfg import ClassifierFree
from ine.guidance.posterior import Dynamic
from ine.guidance.recognition import Probe
from ine.guidance.safree import Safree, safree_against
from ine.guidance.sld import PRESETS, SafeLatent

FILLED = {"negative", "phrases", "embeddings"}
"""Fields that hold the negative; the rest are settings."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way in which a negative acts."""

    name: str
    kind: type
    """The class; its fields besides `FILLED` are the settings a user may give."""

    build: Callable
    """Function of (negative, preset or None, {setting: value}) that returns a `Guidance`."""

    presets: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()
    """Swept for a frontier, rising; empty for a method without a strength."""

    shown: float | None = None
    """The strength of pictures in a comparison; None leaves it to the recipe."""

    compared: str | None = None
    """The preset that a comparison starts from."""

    def at(self, negative, strength=None):
        """Return the guidance of a comparison at a strength; None is the method's own."""
        given = {} if strength is None else {"strength": strength}
        return self.build(negative, self.compared, given)

    @property
    def settings(self):
        """Return the names of the settings."""
        extra = ["slot"] if self.kind is Safree else []
        return [f.name for f in fields(self.kind) if f.name not in FILLED] + extra


METHODS = {
    method.name: method
    for method in (
        Method(
            name="cfg",
            kind=ClassifierFree,
            build=lambda negative, _, given: ClassifierFree(negative),
        ),
        Method(
            name="additive",
            kind=Additive,
            build=lambda negative, _, given: Additive(negative, **given),
            strengths=(1.0, 2.0, 3.0, 4.0, 7.0),
        ),
        # All of "max" but s_S; it is a gain that saturates, so the steps are wide.
        Method(
            name="sld",
            kind=SafeLatent,
            build=lambda negative, preset, given: SafeLatent.preset(
                preset or "medium", negative, **given
            ),
            presets=tuple(PRESETS),
            strengths=(2.0, 10.0, 50.0, 5000.0),
            shown=5000.0,
            compared="max",
        ),
        Method(
            name="safree",
            kind=Safree,
            build=lambda negative, _, given: safree_against(negative, **given),
        ),
        Method(
            name="dynamic",
            kind=Dynamic,
            build=lambda negative, _, given: Dynamic(negative, **given),
            strengths=(1.0, 5.0, 20.0),
            shown=5.0,
        ),
    )
}
"""Name -> `Method`."""


def find_method(name):
    """Return a method of the table.

    Raises:
        IneError: There is none of that name.
    """
    if name not in METHODS:
        hint = did_you_mean(name, METHODS)
        raise IneError(f"guidance {name!r} is unknown{hint}; known: {', '.join(METHODS)}")
    return METHODS[name]


def build_guidance(name, negative, preset=None, settings: Mapping | None = None):
    """Return a `Guidance` of the table.

    Args:
        name: A name of `METHODS`.
        negative: A `Negative` or `Matched`.
        preset: A preset of the method; None is its default.
        settings: {setting: value}; None leaves a default.

    Raises:
        IneError: An unknown method, preset or setting, or a value that makes no sense.
    """
    method = find_method(name)
    if preset is not None and not method.presets:
        raise IneError(f"guidance {name}: has no presets, so --preset {preset} means nothing here")
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    for key in given:
        if key not in method.settings:
            known = ", ".join(method.settings) or "none"
            raise IneError(
                f"guidance {name}: setting {key!r} is unknown"
                f"{did_you_mean(key, method.settings)}; known: {known}"
            )
    return method.build(negative, preset, given)


def describe(value):
    """Return text that changes with everything in a guidance that changes pixels.

    Embeddings are named by trigger and a hash of their vectors, probes by a hash.
    """
    if isinstance(value, ConceptEmbedding):
        return f"{value.trigger}:{value.digest}"
    if isinstance(value, Probe):
        return f"probe:{value.digest}"
    if is_dataclass(value):
        inside = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({inside})"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(describe, value))}]"
    return repr(value)


def read_settings(texts):
    """Return {setting: value} of texts such as "threshold=0.02" or "reattention=true".

    Raises:
        IneError: A text without "=".
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise IneError(f"--guidance-set {text}: expected setting=value")
        found[key.strip()] = _value(value.strip())
    return found


def _value(text):
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
