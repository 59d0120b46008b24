"""Apply rules to stored detector output."""

from ine.detectors.base import RESIZE, looks_through_clip
from ine.detectors.nudenet_codes import Setup, setup_of
from ine.detectors.raw import RawOutput, Settings
from ine.detectors.rule import AnyOf, Rule
from ine.errors import RecipeError


def verdicts(raw: RawOutput, rule: Rule | AnyOf, detector: str | None = None) -> list[bool]:
    """Return whether a rule flags each picture.

    Args:
        raw: What detectors found.
        rule: The rule.
        detector: Name of the stored detector whose scores replace those of the rule's own.

    Raises:
        RecipeError: No stored output fits this rule.
    """
    sources = [(part, detector or source_for(raw, part)) for part in rule.parts]
    if detector and detector not in raw.detectors:
        raise RecipeError(f"detector {detector!r} did not run; {_stored(raw)}")
    return [
        any(part.fires(part.read(one.found[source])) for part, source in sources)
        for one in raw.pictures
    ]


def source_for(raw: RawOutput, part: Rule) -> str:
    """Return the name of the stored detector that a rule can be applied to.

    NudeNet with low floors serves rules for higher ones, if code, weights and channel order are
    the same.

    Raises:
        RecipeError: No stored detector fits, or an older ine ran it differently.
    """
    wanted = setup_of(part.detector)
    for name, settings in raw.detectors.items():
        if name == part.detector:
            _check_current(raw, name, settings)
            return name
        if wanted and _serves(setup_of(name), settings, wanted):
            return name
    raise RecipeError(
        f"rule {part.name!r} needs detector {part.detector!r}; {_stored(raw)}; run the detector "
        f"again with this rule{f' ({part.notes})' if part.before else ''}"
    )


def _serves(stored: Setup | None, settings: Settings, wanted: Setup) -> bool:
    return (
        stored is not None
        and stored.network == wanted.network
        and settings.get("channels") == wanted.channels
        and settings.get("overlap") == wanted.floors.overlap
        and settings.get("considered", 1) <= wanted.floors.considered
        and settings.get("reported", 1) <= wanted.floors.reported
    )


def is_outdated(name: str, settings: Settings) -> bool:
    """Return whether an older ine cropped pictures before this detector: see `to_pixels`."""
    return looks_through_clip(name) and bool(settings) and RESIZE not in settings


def _check_current(raw: RawOutput, name: str, settings: Settings) -> None:
    oblong = next((one for one in raw.pictures if one.size[0] != one.size[1]), None)
    if oblong is not None and is_outdated(name, settings):
        raise RecipeError(
            f"detector {name!r} of an older ine cropped pictures to squares before it resized "
            f"them, and {oblong.picture} is {oblong.size[0]} x {oblong.size[1]}; run the detector "
            "again with this rule"
        )


def _stored(raw: RawOutput) -> str:
    return f"those that ran: {', '.join(raw.detectors) or 'none'}"
