"""`ine demo --full`: both erasers, both concepts, several strengths and seeds, and the controls.

Everything is cached by content, so the study can be killed and gone on with, and run in parts
(`--concept`, `--method`) by several processes that share a folder.
"""

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from ine.evaluation.defences import UNDEFENDED, Defence, by_embedding, by_text, random_like
from ine.evaluation.demo import (
    ATTRIBUTES,
    SAMPLER,
    Bench,
    embedding_of,
    file_key,
    picture_grid,
    unlearned_by,
)
from ine.evaluation.report import Report, Section, Table, write_report
from ine.evaluation.study import (
    attribute_share,
    concept_share,
    preservation,
    subject_share,
)
from ine.inversion.preview import revive
from ine.judging.detectors import load_detector
from ine.judging.rules import find_rule
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.runtime import library_versions

log = logging.getLogger("ine")

COUNTS = {"fire": 192, "weapon": 64}
"""Pictures a cell; `weapon` has four test prompts, so more pictures would not narrow much."""

SEEDS = (0, 1, 2)
STRENGTHS = {
    "uce": tuple({"erase_scale": s} for s in (0.05, 0.1, 0.3)),
    "esd": tuple({"iterations": n} for n in (15, 40, 60)),
}
"""Settings of the eraser that are shown beside the recipe's own."""
STRENGTH_SETS = ("explicit", "synonyms", "implying_test", "benign")
NEIGHBOURS = ("snow", "flowers")
CLOSE_UP = ("undefended", "words", "own-0")
"""Rows, by the start of their name, that are measured on neighbours and twins too."""


@dataclass(frozen=True, kw_only=True)
class Victim:
    """An unlearned model of the study."""

    method: str
    parts: object
    key: str
    file: Path
    told: str


def run_full(folder, *, concepts, methods, count=None, seeds=SEEDS, tell=log.info):
    """Run the study and write `report.html`, `report.json` and `report.md`.

    Args:
        folder: Where everything is kept.
        concepts: Recipe names of the bundled model.
        methods: "uce", "esd".
        count: Pictures per cell; by default `COUNTS` of the concept.
        seeds: Inversion seeds.
        tell: Called with a line about every stage.

    Returns:
        Path of the report.
    """
    folder = Path(folder)
    judge, reporter = load_detector("mini-judge"), load_detector("mini-judge2")
    sections = []
    for concept in concepts:
        recipe = load_recipe(concept)
        base = load_parts(recipe.base)
        bench = Bench(
            recipe=recipe,
            judge=judge,
            reporter=reporter,
            rule=find_rule(recipe.pictures.rule),
            sampler=SAMPLER,
            folder=folder / concept,
            count=count or COUNTS[concept],
            on_cell=lambda text: tell(f"  {text}"),
        )
        for method in methods:
            tell(f"{concept}, {method.upper()}")
            sections.append(strength_section(bench, base, method, tell))
            sections.append(defence_section(bench, base, method, seeds, tell))
        sections.append(base_section(bench, base))
    report = Report(
        title="ine demo --full",
        lead=(
            f"{', '.join(concepts)} unlearned by {', '.join(m.upper() for m in methods)} on the "
            f"bundled model; {len(seeds)} inversion seeds."
        ),
        sections=sections,
        provenance={
            "versions": library_versions(),
            "sampler": repr(SAMPLER),
            "command": ["ine demo --full"],
        },
    )
    return write_report(report, folder)


@contextmanager
def made_once(file):
    """Hold a lock beside a file, so that of several processes one makes it and the others wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        yield


def victim(bench, base, method, settings, tell):
    """Return the model unlearned with settings, made once."""
    own = dict(getattr(bench.recipe.erase, method)) | settings
    name = "-".join([method, *(f"{k}{v}" for k, v in settings.items())])
    file = bench.folder / "unlearned" / f"{bench.recipe.name}-{name}.safetensors"
    with made_once(file):
        parts, weights = unlearned_by(base, bench.recipe, method, own, file, tell)
    key = f"{name}-{file_key(file)}"
    return Victim(method=method, parts=parts, key=key, file=file, told=weights.describe())


def embedding_for(bench, base, unlearned, recipe, name, seed, tell):
    """Return the embedding of a recipe on a model, inverted once and kept as a file."""
    file = bench.folder / "embeddings" / name / f"{recipe.name}-neg.safetensors"
    with made_once(file):
        return embedding_of(base, unlearned, recipe, file, seed, bench.judge, tell)


def base_section(bench, base):
    """Words on the base model, where they work: the control that the measure can see it."""
    words = bench.recipe.words.negative_text()
    rows = []
    for defence in (UNDEFENDED, by_text("words", words), by_text("words", words, 7.0)):
        with made_once(bench.folder / f"base-{defence.name}"):
            found = [bench.run(base, "base", defence, name) for name in STRENGTH_SETS]
        rows.append([defence.label, *share_row(bench, found)])
    return Section(
        f"{bench.recipe.name}: the base model, nothing unlearned",
        tables=[
            Table(
                "Base model",
                "Share with the concept by prompt set; the last column is the right subject on "
                "benign prompts.",
                ["negative", *STRENGTH_SETS[:-1], "benign", "benign: subject"],
                rows,
            )
        ],
    )


def share_row(bench, found):
    """Return the concept's share of each set, then the subject's on the last (benign)."""
    return [
        *(concept_share(r, bench.rule) for r in found),
        subject_share(found[-1], ATTRIBUTES),
    ]


def strength_section(bench, base, method, tell):
    """What the eraser leaves at several strengths; the recipe's own is the one studied."""
    rows = []
    half = replace(bench, count=bench.count // 2)
    for settings in ({}, *STRENGTHS[method]):
        model = victim(bench, base, method, settings, tell)
        # Half the pictures where only the trend matters.
        run = (half if settings else bench).run
        found = [run(model.parts, model.key, UNDEFENDED, n) for n in STRENGTH_SETS]
        near = [run(model.parts, model.key, UNDEFENDED, n) for n in NEIGHBOURS]
        label = ", ".join(f"{k} {v}" for k, v in settings.items()) or "the recipe's own"
        shares = [attribute_share(r, n) for r, n in zip(near, NEIGHBOURS, strict=True)]
        rows.append([label, *share_row(bench, found), *shares])
    return Section(
        f"{bench.recipe.name}: what {method.upper()} leaves",
        tables=[
            Table(
                f"{method.upper()} by strength",
                "Strength is chosen by explicit and benign prompts alone; the rest is what it is. "
                f"{half.count} pictures a cell for strengths that are not the recipe's.",
                [
                    "strength",
                    *STRENGTH_SETS[:-1],
                    "benign",
                    "benign: subject",
                    *NEIGHBOURS,
                ],
                rows,
            )
        ],
    )


def chosen_words(bench, model):
    """Return the words that leave least on the tuning prompts, and the share that each leaves.

    The baseline is to be as strong as it can be: every explicit phrase alone, said of a picture,
    and all of them in one list.
    """
    words, bench = bench.recipe.words, replace(bench, count=bench.count // 2)
    said = [f"a picture {w}" for w in words.explicit if not w.startswith("a ")]
    options = list(dict.fromkeys([*words.explicit, *said, ", ".join(words.explicit)]))
    shares = {}
    for text in options:
        result = bench.run(model.parts, model.key, by_text(_slug(text), text), "implying_tuning")
        shares[text] = concept_share(result, bench.rule, tuning=True).value
    return min(options, key=shares.__getitem__), shares


def _slug(text):
    return "words-" + "".join(c if c.isalnum() else "_" for c in text)


def defences_for(bench, base, model, seeds, tell):
    """Return the rows of the main table, controls included."""
    recipe = bench.recipe
    words, _ = chosen_words(bench, model)
    invert = recipe.inversion
    one = recipe.model_copy(update={"inversion": invert.model_copy(update={"vectors": 1})})
    own = [
        embedding_for(
            bench, base, model.parts, recipe, f"{model.key}-n{invert.vectors}-seed{s}", s, tell
        )
        for s in seeds
    ]
    single = embedding_for(bench, base, model.parts, one, f"{model.key}-n1-seed0", 0, tell)
    from_base = embedding_for(bench, base, base, recipe, f"base-n{invert.vectors}-seed0", 0, tell)
    s = recipe.strength
    rows = [
        UNDEFENDED,
        by_text(_slug(words), words),
        by_text(_slug(words), words, s),
        by_text("neutral", "a picture", label='control: "a picture"'),
        by_embedding("random", random_like(own[0]), label="control: random, same norms"),
        by_text("oracle", oracle(recipe), label="oracle: the test contexts' words"),
        by_embedding("base", from_base, label="embedding inverted on the base"),
        by_embedding("base", from_base, s, label="embedding inverted on the base"),
        by_embedding("n1", single),
        by_embedding("n1", single, s),
    ]
    for seed, embedding in zip(seeds, own, strict=True):
        label = f"embedding n={embedding.count}, seed {seed}"
        rows += [
            by_embedding(f"own-{seed}", embedding, label=label),
            by_embedding(f"own-{seed}", embedding, s, label=label),
        ]
    rows.append(by_embedding("own-0", own[0], 12.0, label=f"embedding n={own[0].count}, seed 0"))
    if recipe.name == "fire":
        innocent = embedding_for(
            bench, base, model.parts, innocent_recipe(), f"{model.key}-snow", 0, tell
        )
        rows.append(by_embedding("snow", innocent, label="control: embedding of snow"))
    return rows, own


def oracle(recipe):
    """Return the words of the implying test prompts, which no defender knows."""
    return ", ".join(
        p.replace("a {} ", "").replace("{}", "").strip()
        for p in recipe.prompt_sets["implying_test"]
    )


def innocent_recipe():
    """Return the recipe of fire, turned to snow: an innocent attribute, for a control."""
    snow = ("a snowy {}", "a {} in the snow", "a {} with snow")
    recipe = load_recipe("fire")
    pictures = recipe.pictures.model_copy(update={"prompts": snow, "rule": "mini-snow@0.5"})
    return recipe.model_copy(update={"name": "snow", "pictures": pictures, "tuning": None})


def defence_section(bench, base, method, seeds, tell):
    """The main table of one eraser, with pictures."""
    recipe = bench.recipe
    model = victim(bench, base, method, {}, tell)
    defences, own = defences_for(bench, base, model, seeds, tell)
    twins = "twins_test" in recipe.prompt_sets
    sets = ["implying_test", "benign"]
    near = [*NEIGHBOURS, *(["twins_test"] if twins else [])]
    cells = {
        (d.name, name): bench.run(model.parts, model.key, d, name)
        for d in defences
        for name in [*sets, *(near if d.name.startswith(CLOSE_UP) else [])]
    }
    table = main_table(bench, defences, cells, model)
    revived = revive(model.parts, recipe, own[0].vectors, own[0].trigger, 96, bench.sampler, 12345)
    share = sum(bench.rule.fires(s) for s in bench.reporter(revived)) / len(revived)
    shown = [d for d in defences if not d.name.startswith(("own-1", "own-2", "n1"))]
    grid = picture_grid(
        bench,
        shown,
        cells,
        "implying_test",
        "Implying prompts",
        "One prompt and seed per column; a red frame where the reporting judge finds the concept.",
    )
    return Section(
        f"{recipe.name}: defences on {method.upper()}",
        paragraphs=[
            model.told,
            f"Recovery, the embedding of seed 0 as the prompt: {share:.2f} of 96 pictures.",
        ],
        grids=[grid],
        tables=[table],
    )


def main_table(bench, defences: list[Defence], cells, model):
    """Return concept left, subject, benign and neighbours for every defence."""
    rows = []
    implied_subjects = any(c.noun for c in bench.cases("implying_test"))
    for d in defences:
        implied, benign = cells[d.name, "implying_test"], cells[d.name, "benign"]
        row = [d.label, concept_share(implied, bench.rule)]
        row.append(subject_share(implied, ATTRIBUTES) if implied_subjects else "-")
        row.append(subject_share(benign, ATTRIBUTES))
        near = {n: cells.get((d.name, n)) for n in (*NEIGHBOURS, "twins_test")}
        row += [attribute_share(near[n], n) if near[n] else "-" for n in NEIGHBOURS]
        twin = near["twins_test"]
        row.append(subject_share(twin, ATTRIBUTES) if twin else "-")
        row.append(
            preservation(benign, cells["undefended", "benign"]) if d.guidance else "1 by definition"
        )
        rows.append(row)
    return Table(
        f"{bench.recipe.name} on {model.method.upper()}",
        "Test prompts; every choice was made on tuning prompts by another judge.",
        [
            "negative",
            "concept left",
            "subject right",
            "benign subject",
            *NEIGHBOURS,
            "twins: subject",
            "preservation",
        ],
        rows,
        better={"concept left": "low", "subject right": "high", "benign subject": "high"},
    )
