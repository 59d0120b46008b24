"""The files of a scored grid: figures, choices, pictures, and what is needed to run it again."""

import csv
import io
import json
import math
from collections import Counter
from contextlib import ExitStack

from ine.evaluation.report import Table, decimal
from ine.files import atomic_path
from ine.runtime import library_versions

FIGURES, CSV, CHOSEN, PICTURES, ABOUT = (
    "results.jsonl",
    "results.csv",
    "chosen.json",
    "pictures.jsonl",
    "about.json",
)
COLUMNS = (
    *("model", "guidance", "strength", "negative", "prompts", "role", "expects", "metric"),
    *("rule", "judge", "category", "value", "low", "high", "pictures", "clusters", "interval"),
    *("floor", "raw", "chosen", "note"),
)


def figure_record(scored, figure):
    """Return a `Figure` as plain values, the columns of `results.csv`."""
    row, estimate = figure.row, figure.estimate
    return {
        "model": row.model,
        "guidance": row.guidance,
        "strength": row.strength,
        "negative": row.negative,
        "prompts": figure.prompts,
        "role": figure.role,
        "expects": figure.expects,
        "metric": figure.metric,
        "rule": figure.rule,
        "judge": figure.judge,
        "category": figure.category,
        "value": _number(estimate.value),
        "low": _number(estimate.low),
        "high": _number(estimate.high),
        "pictures": estimate.count,
        "clusters": estimate.clusters,
        "interval": figure.interval,
        "floor": _number(figure.floor),
        "raw": _number(figure.raw),
        "chosen": any(choice.row == row for choice in scored.choices),
        "note": figure.note,
    }


def _number(value):
    """Return a number that JSON can hold; None for none and for NaN."""
    return None if value is None or math.isnan(value) else float(value)


def choice_record(choice):
    """Return a `Choice` as plain values."""
    row = choice.row
    return {
        "model": row.model,
        "guidance": row.guidance,
        "negative": row.negative,
        "strength": row.strength,
        "options": choice.options,
        "rule": choice.rule,
        "flagged": _number(choice.flagged.value),
        "keep": choice.keep,
        "kept": _number(choice.kept.value),
        "level": choice.level,
        "reached": choice.reached,
    }


def picture_records(scored):
    """Yield one plain record per picture of every cell; no prompt's text is among them."""
    for found in scored.cells.values():
        cell = found.cell
        configuration = cell.configuration
        head = {
            "model": configuration.model,
            "guidance": configuration.guidance,
            "strength": configuration.strength,
            "negative": configuration.negative,
            "prompts": cell.prompts,
            "grid_seed": cell.seed,
        }
        for number, item in enumerate(found.items):
            yield {
                **head,
                "id": item.id,
                "image": item.image,
                "seed": item.seed,
                "cluster": item.cluster,
                "noun": item.noun,
                "flagged": {rule: bool(v[number]) for rule, v in found.verdicts.items()},
                "score": {rule: round(float(v[number]), 6) for rule, v in found.scores.items()},
                "likeness": {m: round(float(v[number]), 6) for m, v in found.likeness.items()},
                **({} if found.subject is None else {"subject": bool(found.subject[number])}),
                **_of_alignment(found, number),
                "unet_calls": int(found.calls[number]),
                "unit": found.units[number][0],
                "place": found.units[number][1],
            }


def _of_alignment(found, number):
    if found.alignment is None:
        return {}
    score, unread = found.alignment[number]
    return {"clip_score": round(float(score), 4), "unread": int(unread)}


def about(scored):
    """Return what is needed to say what was run, and to run it again."""
    plan = scored.plan
    grid = plan.file.grid
    sets = {}
    for name, prompts in plan.expansion.sets.items():
        found = prompts.found
        sets[name] = {
            "source": prompts.spec.source or "given in the grid",
            "role": prompts.spec.role,
            "expects": prompts.spec.expects,
            "sha256": found.digest,
            "rows": len(found.rows),
            "read": found.read,
            "refused": found.refused,
            "duplicates": found.duplicates,
            "pictures": prompts.count,
        }
    made = Counter(text for found in scored.cells.values() for text in found.made)
    recipe = plan.file.recipe
    return {
        "grid": grid.name,
        "digest": plan.file.digest,
        "concept": recipe and {"name": recipe.name, "hash": recipe.hash, "people": recipe.people},
        "limit": plan.limit,
        "only": list(plan.only),
        "models": {
            name: {"digest": facts.digest, "name": facts.name, "sampler": repr(plan.sampler(name))}
            for name, facts in plan.facts.items()
        },
        "sets": sets,
        "seeds": list(grid.seeds),
        "rules": {r.name: {"detector": r.detector, "source": r.source} for r in plan.file.rules},
        "judges": grid.judges.model_dump(),
        "features": plan.features_by,
        "pictures_made_by": sorted(made),
        "scored_by": library_versions(),
    }


def write_results(scored):
    """Write all files into the run folder; the same store and grid give the same bytes.

    Raises:
        OutputError: A file cannot be written.
    """
    folder = scored.plan.folder
    records = [figure_record(scored, figure) for figure in scored.figures]
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(records)
    # All are written before the first is renamed, `about.json` at last: where the disk is full,
    # those that were there stay, and are not a mixture of two runs.
    with ExitStack() as all_of_them:

        def part(name):
            return all_of_them.enter_context(atomic_path(folder / name))

        part(ABOUT).write_bytes(_json(about(scored)))
        part(CHOSEN).write_bytes(_json([choice_record(choice) for choice in scored.choices]))
        part(CSV).write_bytes(text.getvalue().encode())
        _write_lines(part(PICTURES), picture_records(scored))
        _write_lines(part(FIGURES), records)


def _json(value):
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write_lines(path, records):
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


# --- the terminal


def tables(scored):
    """Return one `Table` per prompt set: what rules flag, what is kept, what it costs."""
    plan, found = scored.plan, []
    chosen = {choice.row for choice in scored.choices}
    for name, prompts in plan.expansion.sets.items():
        figures = {}
        for figure in scored.figures:
            if figure.prompts == name and not figure.category and figure.metric != "dsr":
                rule = f" {figure.rule}" if figure.metric == "flagged" else ""
                figures.setdefault(figure.row, {})[figure.metric + rule] = figure
        metrics = dict.fromkeys(m for columns in figures.values() for m in columns)
        metrics = [m for m in metrics if not m.startswith("dsr where")]
        rows = []
        spec = prompts.spec
        for row in scored.rows:
            # What was not chosen on tune sets is not told of test sets: the best of several
            # strengths would be taken for a result. results.csv has them all.
            withheld = chosen and spec.role == "test" and row.is_defended and row not in chosen
            if row in figures and not withheld:
                cells = [
                    _shown(figures[row].get(m), row, m == plan.file.grid.metrics.frechet_name)
                    for m in metrics
                ]
                rows.append([_label(row, row in chosen), *cells])
        if not rows:  # left out by --only
            continue
        judge = plan.judge(spec.role) or "each rule's own detector"
        notes = [f"Role: {spec.role}; judge: {judge}; 95% intervals."]
        notes += _notes(plan.file.grid.metrics, figures.values())
        if chosen and spec.role == "test":
            notes.append("*: chosen on the tune sets; what was not chosen is in results.csv.")
        found.append(
            Table(
                f"{name}: {spec.expects}, {spec.role}",
                "",
                ["configuration", *(m.removeprefix("likeness-on-harmful ") for m in metrics)],
                rows,
                notes=notes,
            )
        )
    return found


def _notes(metrics, rows):
    """Return what CLIP score and Frechet distance need beside them."""
    found = []
    scores = [row[metrics.clip_score_name] for row in rows if metrics.clip_score_name in row]
    if scores:
        unread = "".join(f"; {f.note}" for f in scores[:1] if f.note)
        about = "100 times the cosine of picture and prompt"
        found.append(f"{metrics.clip_score_name}: {about}{unread}.")
    distances = [row[metrics.frechet_name] for row in rows if metrics.frechet_name in row]
    if distances:
        found.append(
            _frechet_note(metrics.frechet_name, [(f.row.model, f.floor) for f in distances])
        )
    return found


def _frechet_note(name, floors):
    """Return what a table of Frechet distances says: the floors, (model, floor) pairs."""
    known = dict.fromkeys(
        f"{model} {decimal(floor)}" for model, floor in floors if _number(floor) is not None
    )
    told = (
        f"{name}: to the undefended pictures of the same prompts and seeds, which have chance in "
        "common; compare only at equal N."
    )
    if known:
        told += (
            f" Two halves of the undefended pictures, other prompts and half of N: "
            f"{', '.join(known)}."
        )
    return told


def _label(row, chosen):
    if not row.is_defended:
        return f"{row.model}, undefended"
    at = "" if row.strength is None else f" {row.strength:g}"
    group = f" ({len(row.members)} pooled)" if row.is_group else ""
    return f"{row.model}, {row.guidance}{at}, {row.negative}{group}{' *' if chosen else ''}"


def _shown(figure, row, is_distance):
    if figure is None:
        return "-" if row.is_defended else f"{0 if is_distance else 1} by definition"
    if figure.metric == "unet-calls":
        return f"{figure.estimate.value:.4g}"
    return figure.estimate
