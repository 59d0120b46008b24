"""How a defence was chosen, for its report: every setting on the tuning prompts."""

from ine.embeddings.embedding import ConceptEmbedding
from ine.guidance.restart import ladder_text
from ine.guidance.table import METHODS
from ine.inversion.header import runs_in
from ine.report.frontier import Curve, Point, frontier_svg
from ine.report.values import Drawing, Entry, Table
from ine.studies.defend.job import Job
from ine.studies.defend.settings import Setting, Tried, Tuning


def tuning_table(job: Job, tuning: Tuning) -> Table:
    """Return what was tried on the tuning prompts; the choice stands first."""
    chosen = tuning.chosen
    named = any(one.subject for one in tuning.tried)
    ordered = [chosen, *(one for one in tuning.tried if one is not chosen)]
    rows: list[list[Entry]] = [
        [
            f"{one.setting.method}{' (chosen)' if one is chosen else ''}",
            "" if one.setting.strength is None else f"{one.setting.strength:g}",
            f"{one.setting.window[0]:g}:{one.setting.window[1]:g}",
            f"{one.setting.false_open:g}",
            restarts_of(one.setting),
            one.left,
            one.kept,
            *([one.subject or "-"] if named else []),
        ]
        for one in ordered
    ]
    concept = job.recipe.name
    subject = f" and the subject in {job.recipe.defence.subject:g}" if named else ""
    return Table(
        title="Settings on the tuning prompts",
        caption=f"Chosen: of those that keep {job.target:g}{subject} and leave at most one picture "
        "more than the least, the one that opens most often; of equals the one that leaves least "
        "without restarts.",
        columns=[
            *("guidance", "strength", "part of the run", "false opens", "restarts"),
            *(f"{concept} left", "preservation", *(["subject kept"] if named else [])),
        ],
        rows=rows,
        notes=["By the detector of choices, on the prompts of choices: better than on others."],
        better={f"{concept} left": "low"},
    )


def restarts_of(setting: Setting) -> str:
    """Return the restarts of a setting as a table says them, "1,2" or "1, additive 8"."""
    ladder = ladder_text(setting.restart)
    return ladder if setting.last is None else f"{ladder}, additive {setting.last:g}"


def runs_tables(job: Job, embedding: ConceptEmbedding) -> list[Table]:
    """Return what the best preview of each inversion measured; nothing where there was one."""
    found, about = runs_in(embedding.metadata), embedding.metadata
    if not found:
        return []
    spec, chosen = job.recipe.inversion, about["ine.run"]
    strength = "" if spec.preview_strength is None else f", strength {spec.preview_strength:g}"
    return [
        Table(
            title="Inversions",
            caption=f"{len(found)} seeds; run {chosen} was chosen, by previews on tuning prompts.",
            columns=["run", *found[0]],
            rows=[
                [f"{run}{' (chosen)' if str(run) == chosen else ''}", *one.values()]
                for run, one in enumerate(found, 1)
            ],
            notes=[
                f"Of each run the preview that was kept: {spec.preview_pictures} pictures of a "
                f"kind, under {spec.preview_guidance}{strength} without a gate; undefended "
                f"{about.get('ine.tuning_undefended', 'not measured')}."
            ],
            better={"left": "low"},
        )
    ]


def tuning_drawing(job: Job, tuning: Tuning) -> Drawing:
    """Return the frontiers of every guidance and window, at one threshold, without restarts."""
    rate = tuning.chosen.setting.false_open
    groups: dict[tuple[str, tuple[float, float]], list[Tried]] = {}
    for one in tuning.tried:
        if one.setting.false_open == rate and not one.setting.restart:
            groups.setdefault((one.setting.method, one.setting.window), []).append(one)
    curves = [
        Curve(
            name=f"{method}, {window[0]:g}:{window[1]:g}",
            points=tuple(_point(one) for one in found),
            colour=list(METHODS).index(method),
            hollow=window != (0, 1),
        )
        for (method, window), found in groups.items()
    ]
    return Drawing(
        f"{job.recipe.name} left against preservation, tuning prompts",
        f"False opens {rate:g}; dashed and hollow: in a part of the run only. No restarts.",
        frontier_svg(curves, tuning.undefended, job.recipe.name),
    )


def _point(one: Tried) -> Point:
    strength = one.setting.strength
    return Point(label="" if strength is None else f"{strength:g}", kept=one.kept, left=one.left)
