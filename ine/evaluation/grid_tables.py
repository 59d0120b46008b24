"""The tables of a grid's report: what was chosen, heat maps, tests, costs, categories, sets.

Every function takes a `RunFolder` and returns a `Section`, or None where there is nothing to say.
"""

import math
from dataclasses import replace

import numpy as np

from ine.evaluation.grid import KEPT_SUBJECT, NONE
from ine.evaluation.grid_tests import LEVEL, MARGIN, flag_tests, preservation_tests
from ine.evaluation.paired import ENOUGH
from ine.evaluation.report import Noted, Section, Table, decimal
from ine.evaluation.reported import options_of, reference_negative, reported, withheld
from ine.evaluation.run_folder import FLAGGED, MATCHED, chosen_of
from ine.evaluation.score import BOOTSTRAP

NOT_MADE = "-"
ABOUT_CLIP_SCORE = (
    "100 times the cosine of picture and prompt. On harmful prompts it is no merit: a defence is "
    "to show something else there."
)
FEW = 15
TOO_NARROW = f"Fewer than {FEW} clusters: intervals by bootstrap are too narrow then."

# --- chosen configurations


def chosen_section(run):
    """Return what was chosen on tune sets, with its figures on test sets."""
    if run.grid.choose is None:
        return None
    choose, rule = run.grid.choose, run.rule
    by_row = {chosen_of(choice): choice for choice in run.choices}
    harmful, benign = run.sets_of("test", "harmful"), run.sets_of("test", "benign")
    tables = []
    for model in run.grid.models:
        rows = []
        for c in reported(run):
            if c.model != model.name or (c.is_defended and c not in by_row):
                continue
            cells = [run.label(c).removeprefix(f"{model.name}, "), *_of_choice(by_row.get(c))]
            cells += [_figure(run, c, name, FLAGGED, rule) for name in harmful]
            cells += [_figure(run, c, name, choose.keep) for name in benign]
            rows.append([*cells, _ratio(run, c)])
        columns = [
            *("configuration", "of", "tune: flagged", "tune: kept"),
            *(f"{name}: flagged" for name in harmful),
            *(f"{name}: {choose.keep}" for name in benign),
            "cost",
        ]
        better = {f"{name}: flagged": "low" for name in harmful}
        better |= {f"{name}: {choose.keep}": "high" for name in benign}
        if rows:
            tables.append(Table(f"Model {model.name}", "", columns, rows, better=better))
    kept_off = withheld(run)
    return Section(
        "Chosen on the tune sets, reported on the test sets",
        [
            f"For every guidance and negative one strength was chosen: of those whose "
            f"{choose.keep} on the benign tune sets ({_names(run, 'tune', 'benign')}) is at least "
            f"{choose.level:g}, the one of which rule {rule} flags least on the harmful tune sets "
            f"({_names(run, 'tune', 'harmful')}). Where none keeps that much, it is the one that "
            'keeps most, marked "too little". The test sets had no part in it.',
            f"{kept_off} other configurations have figures on test sets too. They are in "
            "results.csv and not on this page, since picking one by those figures would be "
            "choosing on the test sets."
            if kept_off
            else "Every configuration of the grid is shown.",
            '"of": how many strengths there were to choose from. "cost": U-Net evaluations of a '
            "picture, as a multiple of the undefended model's.",
        ],
        tables=tables,
    )


def _of_choice(choice):
    if choice is None:
        return ["", "", ""]
    little = "" if choice["reached"] else " (too little)"
    flagged, kept = (
        decimal(math.nan if choice[k] is None else choice[k]) for k in ("flagged", "kept")
    )
    return [str(choice["options"]), flagged, kept + little]


def _names(run, role, *expects):
    return ", ".join(run.sets_of(role, *expects)) or "none"


def _figure(run, configuration, prompts, metric, rule=""):
    """Return a cell of a table."""
    record = run.record(configuration, prompts, metric, rule)
    if record:
        return record.estimate
    measured = metric in run.measures and not configuration.is_defended
    return "1 by definition" if measured else NOT_MADE


# --- heat maps


def heat_maps(run):
    """Return a coloured table per rule, measure and test set."""
    names = run.sets_of("test", "harmful", "benign", "neighbour")
    tables = [
        _heat_map(run, prompts, FLAGGED, rule, "low") for rule in run.rules for prompts in names
    ]
    for prompts in run.sets_of("test", "benign", "neighbour"):
        tables += [_heat_map(run, prompts, measure, "", "high") for measure in run.measures]
    tables += [_heat_map(run, prompts, KEPT_SUBJECT, "", "high") for prompts in names]
    metrics = run.grid.metrics
    # Neither is a share, so that no colour stands for it.
    for metric in filter(None, (metrics.clip_score_name, metrics.frechet_name)):
        tables += [_heat_map(run, prompts, metric, "", "") for prompts in names]
    return Section(
        "Heat maps: model and guidance by negative",
        [
            "One map per rule and test set: the share of pictures that the rule flags, with its "
            "95% interval. A rule's figure says what its detector sees; how often that is wrong "
            "is no part of the interval (`ine judge check` finds out).",
        ],
        tables=[t for t in tables if t],
    )


def _heat_map(run, prompts, metric, rule, better):
    """Return the `Table` of a metric: (model, guidance) by negative; None without figures."""
    rows, negatives, floors, narrow, noted = {}, {}, {}, False, {}
    frechet = metric == run.grid.metrics.frechet_name
    for c in reported(run):
        record = run.record(c, prompts, metric, rule)
        if record is None:
            continue
        options = options_of(run).get((c.model, c.guidance, c.negative), [c])
        chosen = run.grid.choose is not None and len(options) > 1
        if not c.is_defended:
            name = f"{c.model}, undefended"
        else:
            at = "" if c.strength is None or chosen else f" at {c.strength:g}"
            name = f"{c.model}, {c.guidance}{at}"
        note = f"at {c.strength:g}" if chosen else ""
        if frechet and record.raw is not None:
            note = "; ".join(filter(None, (note, f"halves {decimal(record.raw)}")))
        cell = Noted(record.estimate, note) if note else record.estimate
        rows.setdefault(name, {})[c.negative] = cell
        negatives[c.negative] = None
        facts = record
        narrow |= record.interval == BOOTSTRAP and record.estimate.clusters < FEW
        if record.floor is not None:
            floors[f"{c.model} {decimal(record.floor)}"] = None
        if not rule and record.note:
            noted[record.note] = None
    if not rows:
        return None
    columns = [n for n in _order_of_negatives(run) if n in negatives]
    what = f"flagged by {rule}" if rule else metric
    if frechet:
        notes = [*_about_frechet(floors), *(f"Note: {note}." for note in noted)]
    elif metric == run.grid.metrics.clip_score_name:
        notes = [ABOUT_CLIP_SCORE, *(f"Note: {note}." for note in noted)]
    else:
        notes = [f"Unrelated pictures, which read 0 here: {', '.join(floors)}."] if floors else []
    notes += [TOO_NARROW] if narrow else []
    judge = f"Looked at by {facts.judge}. " if facts.judge else ""
    return Table(
        f"{prompts}: {what}",
        f"{judge}Role: test; the prompts are {_article(facts.expects)}.",
        ["model, guidance", *columns],
        [[name, *(cells.get(n, NOT_MADE) for n in columns)] for name, cells in rows.items()],
        notes=notes,
        better=dict.fromkeys(columns, better) if better else {},
    )


def _about_frechet(floors):
    told = [
        "To the undefended pictures of the same prompts and seeds, 0 where nothing changed. It "
        "grows as pictures get fewer: compare only at equal N."
    ]
    if floors:
        told.append(
            "Two halves of the undefended pictures, which share no prompt: "
            f'{", ".join(floors)}. "halves" is the same with one half defended: no larger '
            "where the defence adds nothing to what other prompts do anyway."
        )
    return told


def _article(expects):
    return {"harmful": "harmful", "benign": "benign", "neighbour": "neighbours of the concept"}[
        expects
    ]


def _order_of_negatives(run):
    names = [n.group or n.name for n in run.grid.negatives]
    return list(dict.fromkeys([NONE, *names]))


# --- tests


def tests_section(run):
    """Return the paired tests of negatives."""
    reference = reference_negative(run)
    fewer, no_worse = flag_tests(run), preservation_tests(run)
    if not fewer and not no_worse:
        return None
    tables = []
    if fewer:
        tables.append(
            Table(
                "Flagged less often?",
                "McNemar's exact test over prompts; the difference of shares is new minus old.",
                [
                    *("new", "against", "prompts", "rule", "difference", "only new", "only old"),
                    *("p", "p, Holm", "verdict"),
                ],
                [_fewer_row(run, one) for one in fewer],
                notes=[
                    f"One family of {len(fewer)} tests, adjusted together; verdicts at "
                    f"{LEVEL:g}. Which are made does not depend on any figure.",
                    '"only new": prompts that the new one is flagged on more often than the old '
                    "one; prompts, not pictures, since pictures of one prompt are not "
                    "independent.",
                    '"no difference shown" does not say that there is none.',
                ],
            )
        )
    if no_worse:
        few = any(not one.test.enough for one in no_worse)
        notes = [
            f"Shown where the 95% interval of the difference lies above -{MARGIN:g}, a margin "
            f"that is part of the program, and at least {ENOUGH} pictures were compared."
        ]
        if few:
            notes.append(
                f"Sets of fewer than {ENOUGH} pictures claim nothing, whatever their interval: "
                "not seeing a difference in them says little."
            )
        tables.append(
            Table(
                "No worse on benign prompts?",
                "Paired non-inferiority; the difference is new minus old, above 0 is better.",
                ["new", "against", "prompts", "metric", "difference", "verdict"],
                [_no_worse_row(run, one) for one in no_worse],
                notes=notes,
            )
        )
    return Section(
        "Paired tests on the same prompts and seeds",
        [
            f"Under each guidance every negative is compared with {reference!r}, and that one with "
            "the undefended model.",
        ],
        tables=tables,
    )


def _fewer_row(run, one):
    return [
        run.label(one.new),
        _against(run, one),
        one.prompts,
        one.rule,
        one.difference,
        str(one.test.only_first),
        str(one.test.only_second),
        f"{one.test.p:.2g}",
        f"{one.adjusted:.2g}",
        one.words,
    ]


def _against(run, one):
    return run.label(one.old).removeprefix(f"{one.new.model}, ")


def _no_worse_row(run, one):
    verdict = one.test.words.partition(":")[0]
    difference = one.test.difference
    return [run.label(one.new), _against(run, one), one.prompts, one.metric, difference, verdict]


# --- cost


def mean_calls(run, configuration, sets):
    """Return U-Net evaluations a picture over prompt sets; NaN where nothing was made."""
    parts = [p.calls for name in sets for p in run.parts(configuration, name)]
    return float(np.concatenate(parts).mean()) if parts else math.nan


def cost_ratio(run, configuration):
    """Return U-Net evaluations as a multiple of the undefended model's, over all sets of both."""
    sets = [
        n
        for n in run.sets
        if all(run.parts(c, n) for c in (configuration, configuration.undefended))
    ]
    if not sets:
        return math.nan
    plain = mean_calls(run, configuration.undefended, sets)
    return mean_calls(run, configuration, sets) / plain


def _ratio(run, configuration):
    ratio = cost_ratio(run, configuration)
    return NOT_MADE if math.isnan(ratio) else f"{ratio:.2f}"


def cost_section(run):
    """Return what a picture of each configuration costs."""
    sets = [n for n in run.sets if run.sets[n]["role"] == "test"] or list(run.sets)
    rows = []
    for c in reported(run):
        calls = [mean_calls(run, c, [name]) for name in sets]
        if not all(map(math.isnan, calls)):
            told = [NOT_MADE if math.isnan(n) else f"{n:.4g}" for n in calls]
            rows.append([run.label(c), *told, _ratio(run, c)])
    if not rows:
        return None
    table = Table(
        "U-Net evaluations of a picture",
        "Rows of the U-Net's batch, mean: what time is spent on. A gate or a beginning anew costs "
        "more where it opens, so sets differ.",
        ["configuration", *sets, "times the undefended"],
        rows,
    )
    return Section("Cost", tables=[table])


# --- categories, and figures that are read off


def category_section(run):
    """Return the figures per category, where the grid asks for them."""
    tables = []
    for prompts in run.sets_of("test", "harmful", "neighbour", "benign"):
        for rule in run.rules:
            found = {
                r.category: None
                for r in run.records
                if r.category and (r.prompts, r.rule) == (prompts, rule)
            }
            rows = [
                [run.label(c), *(_category(run, c, prompts, rule, name) for name in found)]
                for c in reported(run)
                if any(run.record(c, prompts, FLAGGED, rule, name) for name in found)
            ]
            if rows:
                tables.append(
                    Table(
                        f"{prompts}: flagged by {rule}, by category",
                        "A prompt of several categories counts in each, so that columns overlap.",
                        ["configuration", *found],
                        rows,
                        better=dict.fromkeys(found, "low"),
                    )
                )
    return Section("Categories", tables=tables) if tables else None


def _category(run, configuration, prompts, rule, name):
    record = run.record(configuration, prompts, FLAGGED, rule, name)
    return record.estimate if record else NOT_MADE


def figures_read_off(run):
    """Return defence success at equal preservation, and what papers report besides."""
    shown, tables = set(reported(run)), []
    rows = [
        [replace(r.configuration, strength=None).label, r.prompts, r.rule, r.estimate, r.note]
        for r in run.records
        if r.metric.startswith(MATCHED) and _is_option(run, r.configuration)
    ]
    if rows:
        choose = run.grid.choose
        tables.append(
            Table(
                "Defence success at equal preservation",
                f"1 minus the share flagged, where {choose.keep} on the benign test sets is "
                f"{choose.level:g}; read between strengths, never beyond them.",
                ["model, guidance, negative", "prompts", "rule", "success", "where"],
                rows,
                better={"success": "high"},
                notes=["The level was set in the grid; no strength is picked by a test figure."],
            )
        )
    rows = [
        [run.label(r.configuration), r.prompts, r.metric, r.rule, r.estimate]
        for r in run.records
        if r.configuration in shown
        and (r.role, r.expects) == ("test", "harmful")
        and r.metric.startswith(("expected-maximum", "likeness-on-harmful"))
    ]
    if rows:
        tables.append(
            Table(
                "Other published figures",
                "expected-maximum@k: the largest share flagged among k random prompts (I2P). "
                "likeness-on-harmful: likeness to the undefended picture on harmful prompts, "
                "which some papers call prior preservation; here high is not good.",
                ["configuration", "prompts", "metric", "rule", "value"],
                rows,
            )
        )
    return Section("Figures read off", tables=tables) if tables else None


def _is_option(run, configuration):
    return any(
        key == (configuration.model, configuration.guidance, configuration.negative)
        for key in options_of(run)
    )


# --- prompt sets


def sets_section(run):
    """Return what became of every prompt set's rows."""
    rows = [
        [
            name,
            *(facts[k] for k in ("role", "expects", "source")),
            *(str(facts[k]) for k in ("read", "refused", "duplicates", "rows", "pictures")),
            facts["sha256"][:16] or NOT_MADE,
        ]
        for name, facts in run.sets.items()
    ]
    columns = [
        *("set", "role", "expects", "source", "read", "refused", "duplicates", "used"),
        *("pictures a cell", "SHA-256"),
    ]
    return Section(
        "Prompt sets",
        tables=[
            Table(
                "What was read",
                "Refused rows were left out by screening (docs/prompts.md) and are shown nowhere. "
                "Duplicates are counted in the whole source.",
                columns,
                rows,
            )
        ],
    )
