"""Guidance methods by the name a user types; a new method is one class and one row here.

The rows name the classes, so that the table can be read without importing torch. What a method
can do (settings, presets, whether it has a strength) is asked of its class.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ine.errors import IneError, did_you_mean

if TYPE_CHECKING:
    from ine.guidance.method import Method, SettingValue
    from ine.guidance.negative import Negative
    from ine.guidance.protocol import Guidance


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One way in which a negative acts."""

    name: str
    place: str
    """The class, "module:name"; its base is `ine.guidance.method.Method`."""

    strengths: tuple[float, ...] = ()
    """Swept for a frontier, rising; empty for a method without a strength."""

    shown: float | None = None
    """The strength of pictures in a comparison; None leaves it to the recipe."""

    compared: str | None = None
    """The preset that a comparison starts from."""

    @property
    def kind(self) -> "type[Method]":
        """The class."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of the settings."""
        return self.kind.settings()

    @property
    def presets(self) -> tuple[str, ...]:
        """The names of the presets."""
        return self.kind.presets

    @property
    def has_strength(self) -> bool:
        """Whether the strength of the negative is a setting."""
        return "strength" in self.settings

    def at(
        self,
        negative: "Negative",
        strength: float | None = None,
        settings: "Mapping[str, SettingValue] | None" = None,
    ) -> "Guidance":
        """Return the guidance of a comparison at a strength; None is the method's own."""
        given = {**(settings or {}), **({} if strength is None else {"strength": strength})}
        return self.kind.build(negative, self.compared, given)


METHODS = {
    row.name: row
    for row in (
        MethodRow(name="cfg", place="ine.guidance.cfg:ClassifierFree"),
        MethodRow(
            name="additive",
            place="ine.guidance.additive:Additive",
            strengths=(1.0, 2.0, 3.0, 4.0, 7.0),
        ),
        MethodRow(
            name="contextual",
            place="ine.guidance.contextual:Contextual",
            strengths=(1.0, 2.0, 3.0, 4.0, 6.0),
        ),
        # All of "max" but s_S; it is a gain that saturates, so the steps are wide.
        MethodRow(
            name="sld",
            place="ine.guidance.sld:SafeLatent",
            strengths=(2.0, 10.0, 50.0, 5000.0),
            shown=5000.0,
            compared="max",
        ),
        MethodRow(name="safree", place="ine.guidance.safree:Safree"),
        MethodRow(
            name="vl-dnp",
            place="ine.guidance.vl_dnp:VlDnp",
            strengths=(1.0, 2.5, 5.0, 7.5, 15.0),
        ),
    )
}
"""Name -> `MethodRow`."""


def find_method(name: str) -> MethodRow:
    """Return a method of the table.

    Raises:
        IneError: No method has that name.
    """
    if name not in METHODS:
        hint = did_you_mean(name, METHODS)
        raise IneError(f"guidance {name!r} is unknown{hint}; known: {', '.join(METHODS)}")
    return METHODS[name]


def name_of(guidance: "Guidance") -> str:
    """Return the name of a guidance without its gates, or that of its class."""
    kinds = (type(guidance), type(guidance.innermost))
    found = (row.name for kind in kinds for row in METHODS.values() if row.kind is kind)
    return next(found, kinds[-1].__name__)


def build_guidance(
    name: str,
    negative: "Negative",
    preset: str | None = None,
    settings: "Mapping[str, SettingValue | None] | None" = None,
) -> "Guidance":
    """Return a `Guidance` of the table.

    Args:
        name: A name of `METHODS`.
        negative: What to steer away from.
        preset: A preset of the method; None is its default.
        settings: {setting: value}; None leaves a default.

    Raises:
        IneError: An unknown method, preset or setting, or a value that makes no sense.
    """
    method = find_method(name)
    if preset is not None and not method.presets:
        raise IneError(f"guidance {name}: has no presets, so preset {preset} means nothing here")
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    for key in given:
        if key not in method.settings:
            known = ", ".join(method.settings) or "none"
            raise IneError(
                f"guidance {name}: setting {key!r} is unknown"
                f"{did_you_mean(key, method.settings)}; known: {known}"
            )
    return method.kind.build(negative, preset, given)


def describe(value: Any) -> str:
    """Return text that changes with everything in a guidance that changes pixels.

    Embeddings are named by trigger and a hash of their vectors, probes by a hash.
    """
    from ine.embeddings.embedding import ConceptEmbedding
    from ine.guidance.probe import Probe

    if isinstance(value, ConceptEmbedding):
        return f"{value.trigger}:{value.digest}"
    if isinstance(value, Probe):
        return f"probe:{value.digest}"
    if is_dataclass(value):
        # What decides no pixels, such as how an observer is loaded, is not in the repr either.
        own = [f.name for f in fields(value) if f.repr]
        inside = ", ".join(f"{name}={describe(getattr(value, name))}" for name in own)
        return f"{type(value).__name__}({inside})"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(describe, value))}]"
    return repr(value)


def read_settings(texts: Iterable[str]) -> "dict[str, SettingValue]":
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


def _value(text: str) -> "SettingValue":
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
