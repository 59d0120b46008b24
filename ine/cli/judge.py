"""`ine judge`: score pictures by named rules, again without pictures, and check the judge."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ine.cli import options
from ine.cli.command import IneSubgroup
from ine.cli.judge_figures import error_facts, error_lines, figure_lines, figures_of, rule_facts
from ine.cli.judge_input import JudgeInput, judging, left_out_lines
from ine.cli.writing import claim_file, claim_folder

if TYPE_CHECKING:
    from ine.detectors.raw import RawOutput
    from ine.detectors.rule import AnyOf, Rule
    from ine.evaluation.judge_check import JudgeError

log = logging.getLogger("ine")


@click.group(cls=IneSubgroup)
def judge() -> None:
    """Score pictures by named rules, and find out how often a judge is wrong.

    PICTURES are files or folders. A figure means something only with its rule's name: the same
    pictures differ by tens of points between published rules.
    """


@judge.command("list")
@options.json_output
def list_(as_json: bool) -> None:
    """List the rules: what each needs, its source, and published ones that cannot be run."""
    from ine.detectors.rules import OLD, RULE_FORMS, RULES, UNAVAILABLE

    if as_json:
        facts = {
            "rules": [rule_facts(rule) for rule in RULES.values()],
            "old": [rule_facts(rule) for rule in OLD.values()],
            "families": {form: about for form, (_, _, about) in RULE_FORMS.items()},
            "unavailable": [vars(lost) for lost in UNAVAILABLE.values()],
        }
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    wide = max(map(len, [*RULES, *OLD]))
    for rule in RULES.values():
        facts = rule_facts(rule)
        click.echo(f"{rule.name:{wide}}  {facts['says']}")
        _indented("; ".join(t for t in (rule.source, rule.notes) if t), wide + 2)
    click.echo("\nWith a threshold T of your own:")
    for form, (_, _, about) in RULE_FORMS.items():
        click.echo(form)
        _indented(about, 4)
    click.echo("\nOld names, still read:")
    for rule in OLD.values():
        click.echo(rule.name)
        _indented(rule.notes, 4)
    click.echo("\nPublished, but cannot be run:")
    for lost in UNAVAILABLE.values():
        click.echo(f"{lost.name}  ({lost.source})")
        _indented(f"{lost.why}; nearest: {', '.join(lost.nearest)}", 4)


def _indented(text: str, by: int) -> None:
    """Print a text, if any, wrapped and indented."""
    if text:
        click.echo(click.wrap_text(text, 100, " " * by, " " * by))


@judge.command()
@judging
@click.option(
    "--rule",
    "names",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Rule, see `ine judge list`; may be repeated.",
)
@click.option(
    "--floor",
    type=options.FiniteRange(0, 1, max_open=True),
    help="Keep NudeNet's boxes above this score, so that --out can be scored by lower thresholds; "
    "published rules score as before.",
)
@click.option(
    "--out",
    type=options.OutPath(),
    metavar="FILE",
    help="Write the raw output here, as JSON lines; an interrupted run resumes from it.",
)
@options.force
@options.json_output
def run(
    given: JudgeInput,
    names: tuple[str, ...],
    floor: float | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Score PICTURES, or the raw output of an earlier run, by one or more rules.

    Write what the detectors found with --out; any rule can score it later with --raw, without
    opening a picture. Intervals are Wilson's, as if pictures were independent; if a folder's index
    states the prompt of each picture, there is also one that counts prompts.

    Until all pictures are done, results are kept in OUT.partial.
    """
    from ine.detectors.raw import write_raw
    from ine.detectors.rules import find_rule
    from ine.detectors.verdicts import verdicts
    from ine.files import check_free

    rules = [find_rule(name) for name in dict.fromkeys(names)]
    if out:
        check_free(out, force)
        claim_file(out)
    partial = out.with_name(out.name + ".partial") if out and given.pictures else None
    raw, left_out = _detected(given, rules, floor, partial)
    found = {rule: verdicts(raw, rule, given.detector) for rule in rules}
    if out:
        write_raw(out, raw)
        if partial:
            partial.unlink(missing_ok=True)
        log.info("wrote %s", out)
    facts = [figures_of(raw, rule, flags, given.detector) for rule, flags in found.items()]
    lines = [line for fact in facts for line in figure_lines(fact)]
    _print({"rules": facts}, lines, left_out, as_json)


def _detected(
    given: JudgeInput, rules: Sequence["Rule | AnyOf"], floor: float | None, partial: Path | None
) -> tuple["RawOutput", dict[str, Any]]:
    """Run the detectors; return (raw output, what was left out)."""
    try:
        return given.raw(rules, floor, partial)
    except KeyboardInterrupt:
        if partial:
            log.warning("interrupted; %s holds what is done, the same command resumes", partial)
        raise


def _print(
    facts: dict[str, Any], lines: Sequence[str], left_out: dict[str, Any], as_json: bool
) -> None:
    """Print a result and what was left out, as JSON or as lines."""
    if as_json:
        click.echo(json.dumps(facts | left_out, indent=2, ensure_ascii=False))
        return
    for line in (*lines, *left_out_lines(**left_out.get("left_out", {}))):
        click.echo(line)


@judge.command()
@judging
@click.option("--rule", "name", metavar="NAME", help="The rule to check.")
@click.option(
    "--pictures",
    "count",
    type=click.IntRange(2),
    default=100,
    show_default=True,
    help="Pictures to show, half of them flagged.",
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
    type=options.OutPath(),
    default=Path("judge-check"),
    show_default=True,
    help="Folder for check.html and answers.csv.",
)
@options.force
@options.json_output
def check(
    given: JudgeInput,
    name: str | None,
    count: int,
    seed: int,
    answers: Path | None,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Let a person confirm or correct a judge, then report how often it is wrong.

    With PICTURES and --rule it writes a page of random pictures with verdicts; with --answers it
    reads a person's answers on that page. Half of the pictures shown are flagged, and the error is
    weighted to represent all pictures.
    """
    from ine.detectors.rules import find_rule
    from ine.detectors.verdicts import verdicts
    from ine.evaluation.answers import read_answers
    from ine.evaluation.judge_check import PAGE, judge_error, questions
    from ine.files import check_free
    from ine.report.check import write_check

    if answers:
        if given.pictures or given.raw_file or name:
            raise click.UsageError("--answers needs no PICTURES, --raw or --rule: it names them")
        _print_error(judge_error(read_answers(answers)), as_json)
        return
    if not name:
        raise click.UsageError(
            "give --rule NAME, or --answers FILE; `ine judge list` has the rules"
        )
    check_free(out / PAGE, force)
    claim_folder(out)
    rule = find_rule(name)
    raw, left_out = given.raw([rule])
    asked = questions(raw, verdicts(raw, rule, given.detector), rule.name, count, seed)
    page, table = write_check(out, asked, _labels(rule))
    flagged = sum(q.flagged for q in asked)
    facts = {"page": str(page), "table": str(table), "shown": len(asked), "flagged": flagged}
    wrote = f"wrote {page}: {len(asked)} of {len(raw.pictures)} pictures, {flagged} flagged"
    _print(facts, [wrote], left_out, as_json)
    if not as_json:
        click.echo(f"Answer there and save, or fill in {table}; then")
        click.echo("ine judge check --answers FILE")


def _labels(rule: "Rule | AnyOf") -> str:
    """Return what a rule looks for, for the page."""
    labels = [label for part in rule.parts for label in part.labels]
    return f"{'any of ' if len(labels) > 1 else ''}{', '.join(dict.fromkeys(labels))}"


def _print_error(found: "JudgeError", as_json: bool) -> None:
    """Print how often a judge is wrong."""
    if as_json:
        click.echo(json.dumps(error_facts(found), indent=2))
        return
    for line in error_lines(found):
        click.echo(line)
