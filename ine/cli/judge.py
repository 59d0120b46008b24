"""`ine judge`: score pictures by named rules, again without pictures, and check the judge."""

import json
import logging
from pathlib import Path

import click

from ine.cli import options
from ine.cli.progress import bar

log = logging.getLogger("ine")

pictures = click.argument("pictures", nargs=-1, type=click.Path(path_type=Path))
raw_file = click.option(
    "--raw",
    "raw_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Raw output of an earlier `ine judge run --out`, in place of PICTURES.",
)
detector = click.option(
    "--detector",
    metavar="NAME",
    help="Apply the rule to this detector's scores, not to its own detector's.",
)
q16_prompts = click.option(
    "--q16-prompts",
    type=click.Path(path_type=Path),
    envvar="INE_Q16_PROMPTS",
    metavar="FILE",
    help="Q16's learned prompts (prompts.p, .npy or .safetensors); read without unpickling.",
)


@click.group()
def judge():
    """Score pictures by named rules, and find out how often a judge is wrong.

    PICTURES are files or folders. A figure means something only with its rule's name: the same
    pictures differ by tens of points between published rules.
    """


@judge.command("list")
@options.json_output
def list_(as_json):
    """List the rules: what each needs, whose it is, and published ones that cannot be run."""
    from ine.judging.rules import FAMILIES, RULES, UNAVAILABLE

    if as_json:
        facts = {
            "rules": [_rule_facts(rule) for rule in RULES.values()],
            "families": {form: about for form, (_, _, about) in FAMILIES.items()},
            "unavailable": [vars(lost) for lost in UNAVAILABLE.values()],
        }
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    wide = max(map(len, RULES))
    for rule in RULES.values():
        facts = _rule_facts(rule)
        click.echo(f"{rule.name:{wide}}  {facts['says']}")
        _indented("; ".join(t for t in (rule.source, rule.note) if t), wide + 2)
    click.echo("\nWith a threshold T of your own:")
    for form, (_, _, about) in FAMILIES.items():
        click.echo(form)
        _indented(about, 4)
    click.echo("\nPublished, but cannot be run:")
    for lost in UNAVAILABLE.values():
        click.echo(f"{lost.name}  ({lost.source})")
        _indented(f"{lost.why}; nearest: {', '.join(lost.nearest)}", 4)


def _indented(text, by):
    if text:
        click.echo(click.wrap_text(text, 100, " " * by, " " * by))


def _rule_facts(rule):
    if len(rule.parts) > 1:
        says = rule.condition
    else:
        many = len(rule.labels) > 1
        how = ("sum of " if rule.total else "any of ") if many else ""
        what = f"{len(rule.labels)} labels" if many else rule.labels[0]
        says = f"{rule.detector}: {how}{what} {rule.condition}"
        if rule.floor and rule.threshold < rule.floor:
            says = f"{rule.detector}: {how}{what} at any score it lets through"
    return {
        "name": rule.name,
        "says": says,
        "detector": rule.detector,
        "labels": sorted({label for part in rule.parts for label in part.labels}),
        "unit": rule.unit,
        "source": rule.source,
        "note": rule.note,
    }


@judge.command()
@pictures
@click.option(
    "--rule",
    "names",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Rule, see `ine judge list`; may be repeated.",
)
@raw_file
@detector
@click.option(
    "--floor",
    type=click.FloatRange(0, 1, max_open=True),
    help="Keep NudeNet's boxes above this score, so that --out can be scored by lower thresholds; "
    "published rules score as before.",
)
@q16_prompts
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the raw output here, as JSON lines.",
)
@options.force
@options.json_output
def run(pictures, names, raw_file, detector, floor, q16_prompts, out, force, as_json):
    """Score PICTURES, or the raw output of an earlier run, by one or more rules.

    Keep what the detectors found with --out, and any rule scores it later with --raw, without
    opening a picture. Intervals are Wilson's, as if pictures were independent; where a folder's
    index says which prompt each is from, there is also one that counts prompts.
    """
    from ine.files import check_free
    from ine.judging.raw import verdicts, write_raw
    from ine.judging.rules import find_rule

    rules = [find_rule(name) for name in dict.fromkeys(names)]
    if out:
        check_free(out, force)
    raw = _raw_of(pictures, raw_file, rules, detector, floor, q16_prompts)
    found = {rule: verdicts(raw, rule, detector) for rule in rules}
    if out:
        write_raw(out, raw)
        log.info("wrote %s", out)
    facts = [_figures(raw, rule, flags, detector) for rule, flags in found.items()]
    if as_json:
        click.echo(json.dumps({"rules": facts}, indent=2, ensure_ascii=False))
        return
    for fact in facts:
        click.echo("\n".join(_lines(fact)))


def _raw_of(pictures, raw_file, rules, detector, floor=None, q16_prompts=None):
    """Return the `Raw` of PICTURES or of --raw, whichever is given."""
    if bool(pictures) == bool(raw_file):
        raise click.UsageError("give PICTURES (files or folders), or --raw FILE, and not both")
    from ine.judging.raw import load_for, look_at, read_raw

    if raw_file:
        if floor is not None or _given("q16_prompts"):
            raise click.UsageError("--floor and --q16-prompts are for PICTURES: --raw opens none")
        return read_raw(raw_file)
    files, prompts = _files(pictures)
    loaded = load_for(rules, floor, detector, {"q16": q16_prompts})
    with bar(len(files), "looking") as progress:
        return look_at(files, loaded, prompts, progress)


def _given(name):
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _files(pictures):
    """Return the picture files, each once, and {file: prompt} from the indices of galleries."""
    from ine.gallery import INDEX, SHEET
    from ine.inversion.images import list_pictures

    files, prompts = {}, {}
    for path in pictures:
        if not path.is_dir():
            files[path] = None
            continue
        index = _index(path / INDEX)
        for file in list_pictures(path):
            # A gallery's sheet shows the pictures once more.
            if index and file.name == SHEET:
                continue
            files[file] = None
            if file.name in index:
                prompts[file] = index[file.name]
    return list(files), prompts


def _index(path):
    """Return {file name: prompt}; empty where there is no index that can be read."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        rows = [json.loads(line) for line in lines]
        return {row["file"]: row["prompt"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _figures(raw, rule, flags, detector):
    from ine.evaluation.metrics import cluster_bootstrap, wilson
    from ine.judging.detection import counts_of
    from ine.judging.raw import source_for

    rate = wilson(sum(flags), len(flags))
    facts = {
        **_rule_facts(rule),
        **({"scored_by": detector} if detector else {}),
        "flagged": rate.hits,
        "pictures": rate.trials,
        "share": rate.share,
        "wilson": [rate.low, rate.high],
    }
    prompts = [look.prompt for look in raw.looks]
    if all(prompts) and len(set(prompts)) < len(prompts):
        mean = cluster_bootstrap([float(f) for f in flags], prompts)
        facts |= {"prompts": mean.clusters, "by_prompts": [mean.low, mean.high]}
    if rule.unit == "boxes":
        source = detector or source_for(raw, rule)
        above = max(rule.threshold, rule.floor)
        counts = [counts_of(look.found[source], rule.labels, above) for look in raw.looks]
        facts["boxes"] = {label: sum(c[label] for c in counts) for label in rule.labels}
    facts["verdicts"] = {look.picture: flag for look, flag in zip(raw.looks, flags, strict=True)}
    return facts


def _lines(facts):
    low, high = facts["wilson"]
    by = f", scored by {facts['scored_by']}" if "scored_by" in facts else ""
    yield (
        f"{facts['name']}{by}: {facts['flagged']} of {facts['pictures']} flagged, "
        f"{facts['share']:.3f} (Wilson {low:.3f} to {high:.3f})"
    )
    if "by_prompts" in facts:
        low, high = facts["by_prompts"]
        yield f"  counting {facts['prompts']} prompts: {low:.3f} to {high:.3f}"
    if "boxes" in facts:
        yield "  boxes: " + ", ".join(f"{label} {n}" for label, n in facts["boxes"].items())
    if facts["note"]:
        yield f"  {facts['note']}"


@judge.command()
@pictures
@click.option("--rule", "name", metavar="NAME", help="The rule that is checked.")
@raw_file
@detector
@q16_prompts
@click.option(
    "--pictures",
    "count",
    type=click.IntRange(2),
    default=100,
    show_default=True,
    help="How many to show, half of them flagged.",
)
@options.seed
@click.option(
    "--answers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read what a person answered (answers.json or answers.csv) and report the error.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("judge-check"),
    show_default=True,
    help="Folder for check.html and answers.csv.",
)
@options.force
@options.json_output
def check(
    pictures, name, raw_file, detector, q16_prompts, count, seed, answers, out, force, as_json
):
    """Let a person confirm or correct a judge, then report how often it is wrong.

    With PICTURES and --rule it writes a page of random pictures with verdicts; with --answers it
    reads what a person answered there. Half of the pictures shown are flagged ones, and the error
    is weighted back to all pictures.
    """
    from ine.evaluation.judge_check import PAGE, judge_error, questions, read_answers, write_check
    from ine.files import check_free
    from ine.judging.raw import verdicts
    from ine.judging.rules import find_rule

    if answers:
        if pictures or raw_file or name:
            raise click.UsageError("--answers needs no PICTURES, --raw or --rule: it names them")
        _tell(judge_error(read_answers(answers)), as_json)
        return
    if not name:
        raise click.UsageError(
            "give --rule NAME, or --answers FILE; `ine judge list` has the rules"
        )
    check_free(out / PAGE, force)
    rule = find_rule(name)
    raw = _raw_of(pictures, raw_file, [rule], detector, None, q16_prompts)
    asked = questions(raw, verdicts(raw, rule, detector), rule.name, count, seed)
    labels = [label for part in rule.parts for label in part.labels]
    what = f"{'any of ' if len(labels) > 1 else ''}{', '.join(dict.fromkeys(labels))}"
    page, table = write_check(out, asked, what)
    flagged = sum(q.flagged for q in asked)
    if as_json:
        facts = {"page": str(page), "table": str(table), "shown": len(asked), "flagged": flagged}
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"wrote {page}: {len(asked)} of {len(raw.looks)} pictures, {flagged} flagged")
    click.echo(f"Answer there and save, or fill in {table}; then")
    click.echo("ine judge check --answers FILE")


def _tell(found, as_json):
    rows = {
        "false positive rate": found.false_positive,
        "false negative rate": found.false_negative,
        "truly there": found.there,
    }
    if as_json:
        import math

        def plain(x):
            return x if math.isfinite(x) else None

        facts = {
            "rule": found.rule,
            "flagged": found.flagged,
            **{
                key.replace(" ", "_"): {"value": plain(e.value), "low": e.low, "high": e.high}
                for key, e in rows.items()
            },
            "answered": found.answered,
            "unsure": found.unsure,
            "left": found.left,
        }
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(
        f"{found.rule}, by {found.answered} answers ({found.unsure} unsure, {found.left} left)"
    )
    for key, e in rows.items():
        value = f"{e.value:.3f}" if e.value == e.value else "not seen"
        click.echo(f"{key:<20} {value} ({e.low:.3f} to {e.high:.3f})")
    click.echo(f"{'flagged by the judge':<20} {found.flagged:.3f}")
