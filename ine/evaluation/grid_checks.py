"""What is wrong with a grid although each field by itself is right."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ine.detectors.features import extractor_place
from ine.detectors.rules import find_rule
from ine.errors import IneError, did_you_mean
from ine.evaluation.grid import ANY, KEPT_SUBJECT, MEASURES, NONE, Grid, GridGuidance
from ine.evaluation.similarity import is_lpips
from ine.guidance.applied import RECOMMENDED
from ine.guidance.gates import Window
from ine.guidance.table import find_method
from ine.posi.table import parse_rewriter as parse_prompt_rewriter
from ine.prompts.screening import is_refused
from ine.recipe import ConceptRecipe
from ine.refining.settings import preset
from ine.refining.table import parse_rewriter
from ine.sampling import SCHEDULERS


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """What every check is given, see `problems_of`."""

    grid: Grid
    recipe: ConceptRecipe | None
    at: Callable[..., str]


def problems_of(grid: Grid, recipe: ConceptRecipe | None, at: Callable[..., str]) -> Iterator[str]:
    """Yield what is wrong, with places.

    Args:
        grid: The grid.
        recipe: The concept's recipe, where there is one.
        at: Gives "line 7: " for the parts of a key path.
    """
    checked = _Checked(grid=grid, recipe=recipe, at=at)
    for kind in ("models", "negatives", "guidances", "prompts"):
        names = [entry.name for entry in getattr(grid, kind)]
        for number, name in enumerate(names):
            if name in names[:number]:
                yield f"{at(kind, number)}{kind}: {name!r} stands twice"
    for check in (_models, _negatives, _guidances, _prompts, _sampler, _judging, _choose):
        yield from check(checked)


def _refusal(check: Callable[..., object], *values: object) -> str:
    """Return why a check refuses values, "" where it does not."""
    try:
        check(*values)
    except IneError as error:
        return str(error)
    return ""


def _models(file: _Checked) -> Iterator[str]:
    for number, model in enumerate(file.grid.models):
        if not model.model and not file.recipe:
            yield (
                f"{file.at('models', number)}model {model.name!r}: names no base; give model: or "
                "a concept:"
            )


def _negatives(file: _Checked) -> Iterator[str]:
    grid, recipe = file.grid, file.recipe
    models, names = {m.name for m in grid.models} | {ANY}, {n.name for n in grid.negatives}
    for number, negative in enumerate(grid.negatives):
        at = f"{file.at('negatives', number)}negative {negative.name!r}: "
        if negative.group in names:
            yield f"{at}its group has the name of a negative; give the group another one"
        if negative.is_empty and negative.name != NONE:
            yield f"{at}is empty; give words, text, oracle or embeddings, or call it {NONE}"
        if negative.name == NONE and not negative.is_empty:
            yield f"{at}is the empty one; give another name"
        if (negative.words or negative.oracle) and not recipe:
            yield f"{at}needs a concept: words and oracle are a recipe's"
        elif negative.oracle and recipe and "implying_test" not in recipe.prompt_sets:
            yield f"{at}recipe {recipe.name} has no prompt set implying_test for an oracle"
        for key in negative.embeddings:
            if key not in models:
                yield f"{at}embeddings: model {key!r} is unknown{did_you_mean(key, models)}"
        for seed in negative.seeds:
            if seed not in grid.seeds:
                seeds = ", ".join(map(str, grid.seeds))
                yield f"{at}seed {seed} is not one of the grid's seeds, {seeds}"
        if is_refused(negative.text):
            yield f"{at}its text is refused by screening (docs/prompts.md)"


def _guidances(file: _Checked) -> Iterator[str]:
    grid = file.grid
    negatives = [n.name for n in grid.negatives if n.name != NONE]
    for number, guidance in enumerate(grid.guidances):
        at = f"{file.at('guidances', number)}guidance {guidance.name!r}: "
        if guidance.name == NONE:
            yield f"{at}the undefended model is there by itself; leave it out"
        if guidance.as_recommended and (problem := _recommended(guidance)):
            yield f"{at}{problem}"
            continue
        if guidance.method != RECOMMENDED and (problem := _refusal(find_method, guidance.method)):
            yield f"{at}{problem}"
            continue
        for problem in (
            *_strengths(guidance),
            *_references(grid, guidance, negatives),
            *_refinement(guidance, grid),
        ):
            yield f"{at}{problem}"
        if guidance.window and (problem := _refusal(Window, *guidance.window)):
            yield f"{at}{problem}"
    if not negatives and not all(guidance.is_alone for guidance in grid.guidances):
        yield f"{file.at('guidances')}guidances: there is no negative for them to act with"
    if negatives and not grid.guidances:
        yield f"{file.at('negatives')}negatives: there is no guidance by which they act"


def _recommended(guidance: GridGuidance) -> str:
    """Return what does not go together with what files recommend, "" where all does."""
    if guidance.refine:
        return f"{RECOMMENDED}: refine goes with a method and a gate that are named"
    if len(set(guidance.gate.values())) > 1:
        return f"gate: give {RECOMMENDED} for all negatives, or a file for each"
    stated = [n for n in ("preset", "settings", "strengths", "gate") if getattr(guidance, n)]
    if guidance.method != RECOMMENDED or not stated:
        return ""
    what = ", ".join(stated)
    return f"method {RECOMMENDED}: leave {what} out, or name a method with gate: {RECOMMENDED}"


def _strengths(guidance: GridGuidance) -> Iterator[str]:
    if guidance.method == RECOMMENDED:
        return
    method = find_method(guidance.method)
    if guidance.strengths and not method.strengths:
        yield f"{method.name} has no strength of its own; leave strengths out"
    if guidance.strengths and "strength" in guidance.settings:
        yield "give strengths or settings.strength, not both"
    if len(set(guidance.strengths)) < len(guidance.strengths):
        yield "strengths: one stands twice"
    if guidance.gate and method.kind.looks_itself:
        yield f"{method.name} has a gate of its own, its observer; leave gate and restart out"
    elif guidance.restart is not None and not guidance.gate:
        yield "restart needs a gate: the gate decides which pictures are restarted"


def _refinement(guidance: GridGuidance, grid: Grid) -> Iterator[str]:
    refine, rewrite = guidance.refine, guidance.rewrite
    if rewrite and (problem := _refusal(parse_prompt_rewriter, rewrite.by)):
        yield f"rewrite: {problem}"
    if NONE in guidance.negatives and not (refine or rewrite):
        yield (f"negatives: {NONE} is for guidances with refine or rewrite; leave the guidance out")
    if guidance.is_alone and (guidance.strengths or guidance.gate or guidance.preset):
        yield f"negatives: {NONE} leaves nothing to strengths, gate and preset; leave them out"
    if refine is None:
        return
    if problem := _refusal(parse_rewriter, refine.observer):
        yield f"refine: {problem}"
    if problem := _refusal(preset, refine.protocol):
        yield f"refine: {problem}"
    elif guidance.is_alone and preset(refine.protocol).fixed_negative:
        yield (
            f"refine: protocol {refine.protocol} has a negative text in every generation, so "
            f"negatives: {NONE} cannot be; name a negative with text"
        )
    rivals = [one.name for one in grid.guidances if one.refine and one is not guidance]
    if refine.against is not None and refine.against not in rivals:
        hint = did_you_mean(refine.against, rivals)
        yield f"refine: against {refine.against!r} is no other guidance that refines{hint}"


def _references(grid: Grid, guidance: GridGuidance, negatives: Sequence[str]) -> Iterator[str]:
    """Yield names in a guidance that the grid does not have."""
    models = [m.name for m in grid.models]
    groups = [n.group for n in grid.negatives if n.group]
    # That `none` needs a refinement is said by `_refinement`.
    for what, given, known in (
        ("model", guidance.models, models),
        (
            "negative",
            guidance.negatives,
            [*negatives, *groups, NONE],
        ),
    ):
        for name in given:
            if name not in known:
                yield f"{what} {name!r} is unknown{did_you_mean(name, known)}"
    for key in guidance.gate:
        model, _, negative = key.partition("/")
        if model not in (ANY, *models) or (negative and negative not in negatives):
            yield f"gate: {key!r} is no model, nor model/negative"


def _prompts(file: _Checked) -> Iterator[str]:
    for number, given in enumerate(file.grid.prompts):
        at = f"{file.at('prompts', number)}prompts {given.name!r}: "
        if (given.source is None) == (not given.prompts):
            yield f"{at}give a source (a file or a named set) or prompts, one of them"
        if any(not text.strip() for text in given.prompts):
            yield f"{at}a prompt is empty"
        if any(is_refused(text) for text in given.prompts):
            yield f"{at}a prompt is refused by screening (docs/prompts.md)"


def _sampler(file: _Checked) -> Iterator[str]:
    grid = file.grid
    name = grid.sampler.scheduler
    if name and name not in SCHEDULERS:
        problem = f"scheduler {name!r} is unknown{did_you_mean(name, SCHEDULERS)}"
        yield f"{file.at('sampler', 'scheduler')}{problem}; known: {', '.join(SCHEDULERS)}"
    if len(set(grid.seeds)) < len(grid.seeds):
        yield f"{file.at('seeds')}seeds: one stands twice"


def _judging(file: _Checked) -> Iterator[str]:
    grid = file.grid
    if not grid.rules and not file.recipe:
        yield f"{file.at()}rules: missing; name at least one, or a concept"
    for name in grid.rules:
        if problem := _refusal(find_rule, name):
            yield f"{file.at('rules')}{problem}"
    for name in grid.metrics.preservation:
        if name not in MEASURES and not is_lpips(name):
            hint = did_you_mean(name, MEASURES)
            yield (
                f"{file.at('metrics', 'preservation')}measure {name!r} is unknown{hint}; known: "
                f"{', '.join(MEASURES)}"
            )
    for metric, clip in (
        ("clip_score", grid.metrics.clip_score),
        ("frechet", grid.metrics.frechet),
    ):
        if clip and (problem := _refusal(extractor_place, clip)):
            yield f"{file.at('metrics', metric)}{metric}: {problem}"


def _choose(file: _Checked) -> Iterator[str]:
    grid, wanted = file.grid, file.grid.choose
    if wanted is None:
        return
    at = f"{file.at('choose')}choose: "
    sets = {(given.role, given.expects) for given in grid.prompts}
    for expects in ("harmful", "benign"):
        if ("tune", expects) not in sets:
            yield (
                f"{at}choices are made on tune sets, and there is none with role: tune and "
                f"expects: {expects}"
            )
    keep, rule = wanted.keep, wanted.rule
    known = [*grid.metrics.preservation, *([KEPT_SUBJECT] if grid.metrics.subject else [])]
    if keep not in known:
        yield f"{at}keep {keep!r} is not measured{did_you_mean(keep, known)}; metrics: {known}"
    if rule and grid.rules and rule not in grid.rules:
        yield f"{at}rule {rule!r} is not one of rules{did_you_mean(rule, grid.rules)}"
