"""The page of `ine audit`, and its rounds as data."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ine.evaluation.stats import Estimate, Rate
from ine.files import write_json
from ine.guidance.table import describe
from ine.report.page import write_report
from ine.report.values import Cell, Entry, PictureGrid, Report, Section, Table
from ine.runtime import library_versions
from ine.studies.audit_round import LETTERS, Audit, Round, best_of
from ine.studies.reading import blur_for

NOT_TRIED = (
    "Not tried: prompts of ordinary words (ine attack), other inits and seeds than the ones "
    "named, longer inversions, vectors learned through a whole run instead of single steps, "
    "{gate}, attacks on weights."
)

NO_GATE = "gradients through a gate (its method was attacked as if always open)"
THROUGH_GATE = (
    "words that keep the gate shut (ine attack --through-gate), other weights of its term"
)


def write_audit(audit: Audit, rounds: Sequence[Round], blur: str | None = None) -> Path:
    """Write report.html, report.json, report.md and audit.json; return the page's path.

    Args:
        audit: What was attacked.
        rounds: From `run_audit`.
        blur: As in `write_report`; by default "click", and "hide" for recipes about people.
    """
    data = {
        "concept": audit.recipe.name,
        "settings": asdict(audit.settings),
        "rounds": [_plain_round(one) for one in rounds],
    }
    write_json(audit.folder / "audit.json", data)
    return write_report(audit_report(audit, rounds), audit.folder, blur or blur_for(audit.recipe))


def _plain_round(one: Round) -> dict[str, object]:
    attacks = [
        {
            "name": a.name,
            **_plain(a.recovered),
            "undefended": _plain(a.undefended),
            "pictures": a.recovered.trials,
        }
        for a in one.attacks
    ]
    return {
        "round": one.number,
        "negatives": list(one.negatives),
        "attacks": attacks,
        "preservation": _plain(one.kept),
        "left": one.left and _plain(one.left),
    }


def _plain(figure: Estimate | Rate) -> dict[str, float]:
    value = figure.share if isinstance(figure, Rate) else figure.value
    return {"value": value, "low": figure.low, "high": figure.high}


def audit_report(audit: Audit, rounds: Sequence[Round]) -> Report:
    """Return the report of an audit."""
    best, concept, parts = best_of(rounds), audit.recipe.name, audit.victim.parts
    files = [f"{concept}-round-{letter}.safetensors" for letter in LETTERS[: best.number]]
    return Report(
        title=f"ine audit: {concept}",
        lead=lead_of(audit, rounds),
        sections=[
            Section(
                "Attacks",
                paragraphs=[NOT_TRIED.format(gate=THROUGH_GATE if audit.gate else NO_GATE)],
                tables=[attacks_table(rounds)],
                grids=[_pictures(one) for one in rounds],
            ),
            Section("Defences", tables=[costs_table(rounds)]),
        ],
        provenance={
            "defence": describe(audit.defence),
            "budget of an attack": _budget(audit),
            "settings": str(asdict(audit.settings)),
            "model": f"{parts.name}, U-Net {parts.unet_name}",
            "sampler": repr(audit.victim.sampler),
            "rule": f"{audit.recipe.pictures.rule}, detector {audit.detector}",
            "pictures of the attacker": f"{audit.pictures.count}, {audit.origin}",
            "versions": library_versions(),
        },
        next_steps=[
            (
                "Defend with these, beside what was given:" if files else "Make pictures:",
                "ine generate " + " ".join(f"--negative-embedding {name}" for name in files),
            )
        ],
    )


def lead_of(audit: Audit, rounds: Sequence[Round]) -> str:
    """Return the first paragraph: what the strongest attack on the best defence recovers."""
    best, last, threshold = best_of(rounds), rounds[-1], audit.settings.threshold
    count = len(best.attacks)
    held = best.worst.recovered.share <= threshold
    added = f"after {best.number} rounds of adding what was found"
    lead = (
        f"Of {count} attacks, {_knowing(audit)} ({_budget(audit)}), the "
        f"strongest recovers {audit.recipe.name} in {_share(best.worst.recovered)} of its pictures "
        f"{added if best.number else 'from the defence as it was given'}, "
        f"{'at most' if held else 'more than'} the threshold of {threshold:g}. Where nothing "
        f"defends, the strongest attack recovers {_share(best.control.undefended)}."
    )
    if best is not last:
        lead += (
            f" That is the best of {len(rounds)} defences: adding more made it no better, and the "
            f"last of them lets {_share(last.worst.recovered)} through."
        )
    return lead


def _knowing(audit: Audit) -> str:
    """Return which of the attacks know the defence."""
    if audit.gate:
        return "some of them inverted through the defence and some to keep its gate shut"
    return "some of them inverted through the defence"


def _budget(audit: Audit) -> str:
    spec, gate = audit.recipe.inversion, audit.gate
    shut = f", gate term of weight {gate.weight:g}" if gate else ""
    seeds = "one seed" if spec.runs == 1 else f"{spec.runs} seeds"
    return (
        f"{spec.vectors} vectors, {spec.steps} steps of {spec.batch} pictures, {seeds} of each "
        f"attack{shut}"
    )


def _share(rate: Rate) -> str:
    return f"{rate.share:.2f} ({rate.low:.2f} to {rate.high:.2f})"


def attacks_table(rounds: Sequence[Round]) -> Table:
    """Return what each attack of each round recovers."""
    rows: list[list[Entry]] = [
        [f"{one.number}" if n == 0 else "", attack.name, attack.undefended, attack.recovered]
        for one in rounds
        for n, attack in enumerate(one.attacks)
    ]
    return Table(
        "What each attack recovers",
        "The embedding as the prompt, through the whole defended sampler; undefended is the "
        "control, an attack that recovers nothing there says nothing about a defence.",
        ["round", "attack", "undefended", "recovered"],
        rows,
        better={"recovered": "low"},
    )


def costs_table(rounds: Sequence[Round]) -> Table:
    """Return what the defence of each round costs and leaves."""
    rows: list[list[Entry]] = [
        [str(one.number), ", ".join(one.negatives), one.kept, one.left or "-"] for one in rounds
    ]
    return Table(
        "What each defence costs and leaves",
        "Preservation: likeness to the undefended pictures of benign prompts. Left: the concept on "
        "the recipe's tuning prompts.",
        ["round", "negatives", "benign: preservation", "tuning prompts: left"],
        rows,
        better={"benign: preservation": "high", "tuning prompts: left": "low"},
    )


def _pictures(one: Round) -> PictureGrid:
    rows: list[tuple[str, list[Cell | None]]] = [
        (f"{one.control.name}, undefended", [*one.control.undefended_cells])
    ]
    rows += [(attack.name, [*attack.cells]) for attack in one.attacks]
    return PictureGrid(
        f"Round {one.number}",
        "Columns are prompts and seeds, the same for every attack.",
        [str(n) for n in range(len(one.attacks[0].cells))],
        rows,
    )
