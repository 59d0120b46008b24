"""What an audit attacks, and one round of it: a grid of attacks, and what they recover."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ine.attacks.step import Victim
from ine.attacks.through_gate import WEIGHT, GateLoss, gate_loss, gates_of, has_coarse_run
from ine.detectors.rules import find_rule
from ine.embeddings.embedding import ConceptEmbedding, write_embedding
from ine.errors import IneError
from ine.evaluation.cells import Configuration
from ine.evaluation.grid import Grid, GridGuidance, GridJudges, GridModel, GridNegative, GridPrompts
from ine.evaluation.grid_file import GridFile
from ine.evaluation.metrics.flagged import FLAGGED
from ine.evaluation.stats import Estimate, Rate, wilson
from ine.guidance.protocol import Guidance
from ine.guidance.table import describe
from ine.inversion.images import ConceptPictures
from ine.recipe import ConceptRecipe
from ine.report.values import Cell
from ine.studies.cases import BENIGN, TUNING, Case, Expects, attack_cases, prompts_of, set_cases
from ine.studies.grids import grid_file, metrics_by, run_grid, sampler_of
from ine.studies.reading import GridResult

MODEL, DEFENCE = "model", "defence"
"""Names in the grid of a round."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""A trigger ends with a letter, or some UIs would not find it."""

SHOWN = 8
"""Pictures of each attack in the report."""

Tell = Callable[[str, int, int], None]
"""Called with (what, done, of how many)."""

Attacks = Sequence[tuple[str, ConceptEmbedding]]
"""(what it is called, what is used as the prompt) of each attack."""


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """How long an audit goes on, and how closely it looks."""

    rounds: int = 3
    threshold: float = 0.1
    """Largest share of pictures with the concept, in [0, 1], at which the audit ends."""

    pictures: int = 48
    """Pictures by which an attack is judged."""

    benign: int = 48
    """Pictures of benign prompts by which preservation is measured."""

    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `IneError` where a number makes no sense."""
        if not 1 <= self.rounds < len(LETTERS) or self.pictures < 2 or self.benign < 2:
            raise IneError(
                f"audit: {self.rounds} rounds of {self.pictures} and {self.benign} pictures; give "
                f"1 to {len(LETTERS) - 1} rounds and at least two pictures"
            )
        if not 0 <= self.threshold <= 1:
            raise IneError(f"audit: threshold is {self.threshold}; give a share in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What is attacked, and by what."""

    victim: Victim
    """The unlearned model, how the defended service samples, and the defence as it was given."""

    recipe: ConceptRecipe
    """Its `inversion` section is the budget of an attack, `runs` seeds of each; its rule finds the
    concept."""

    pictures: ConceptPictures
    """What the attacker has."""

    origin: str = "made by the base model"
    """Where they come from, in words."""

    folder: Path
    """Where states, pictures and the embeddings found go."""

    settings: AuditSettings = AuditSettings()
    judge: str | None = None
    """Name of the detector that looks, instead of the rule's own."""

    gate_weight: float = WEIGHT
    """How much the attacker who keeps the gate shut cares for that, see `GateLoss.weight`."""

    def __post_init__(self) -> None:
        """Raise `IneError` where the defence steers away from nothing."""
        if self.victim.guidance is None or not self.victim.guidance.negative.prompt():
            raise IneError(
                "audit: there is no defence to attack; give a negative, such as "
                "--negative-embedding FILE"
            )

    @property
    def defence(self) -> Guidance:
        """The defence as it was given."""
        assert self.victim.guidance
        return self.victim.guidance

    @property
    def gate(self) -> GateLoss | None:
        """What keeps the gate shut; None for a defence whose gate, if any, has no gradient."""
        if not gates_of(self.defence) or not has_coarse_run(self.victim.parts):
            return None
        return gate_loss(self.victim, self.recipe.name, self.gate_weight)

    @property
    def detector(self) -> str:
        """Name of the detector that looks."""
        return self.judge or find_rule(self.recipe.pictures.rule).detector


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What one attack recovered."""

    name: str
    recovered: Rate
    undefended: Rate
    """The control: what it recovers where nothing defends. An attack that recovers nothing there
    says nothing about a defence."""

    cells: list[Cell]
    """The first pictures."""

    undefended_cells: list[Cell]
    """The same, undefended."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One defence, the attacks on it, and what it costs."""

    number: int
    """From 0: the defence as it was given."""

    negatives: tuple[str, ...]
    """Names of what the defence steers away from."""

    attacks: tuple[Attacked, ...]
    kept: Estimate
    """Preservation on benign prompts against the undefended model, 1 where nothing changed."""

    left: Estimate | None
    """The concept on the recipe's tuning prompts; None where it has none."""

    @property
    def worst(self) -> Attacked:
        """Return the attack that recovered most."""
        return max(self.attacks, key=lambda attack: attack.recovered.share)

    @property
    def control(self) -> Attacked:
        """Return the attack that recovers most where nothing defends."""
        return max(self.attacks, key=lambda attack: attack.undefended.share)


def best_of(rounds: Sequence[Round]) -> Round:
    """Return the round whose defence lets the least through by its worst attack, the first such."""
    return min(rounds, key=lambda one: one.worst.recovered.share)


def run_round(audit: Audit, number: int, guidance: Guidance, attacks: Attacks, tell: Tell) -> Round:
    """Return what attacks recover with a defence and without, and what it costs and leaves."""
    name, given = round_name(number), guidance.negative
    file = round_grid(audit, name, guidance, attacks)
    result = run_grid(
        file,
        audit.folder / "rounds" / name,
        store=audit.folder,
        models={MODEL: audit.victim.parts},
        guidances={DEFENCE: guidance},
        on_progress=lambda p: tell(f"pictures of {name}", p.done, p.total),
    )
    row = result.row(DEFENCE, None, DEFENCE)
    return Round(
        number=number,
        negatives=(*filter(None, [given.text]), *(e.trigger for e in given.embeddings)),
        attacks=tuple(
            _attacked(result, row, f"{name}-attack-{n}", label)
            for n, (label, _) in enumerate(attacks)
        ),
        kept=result.value(row, BENIGN, file.grid.metrics.preservation[0]),
        left=result.value(row, TUNING, FLAGGED) if audit.recipe.tuning else None,
    )


def round_name(number: int) -> str:
    """Return the name of a round, "round-a"."""
    return f"round-{LETTERS[number]}"


def _attacked(result: GridResult, row: Configuration, prompts: str, label: str) -> Attacked:
    fired, bare = result.flagged(row, prompts), result.flagged(result.row(), prompts)
    return Attacked(
        name=label,
        recovered=wilson(sum(fired), len(fired)),
        undefended=wilson(sum(bare), len(bare)),
        cells=result.cells(row, prompts, SHOWN),
        undefended_cells=result.cells(result.row(), prompts, SHOWN),
    )


def round_grid(audit: Audit, name: str, guidance: Guidance, attacks: Attacks) -> GridFile:
    """Return the grid of a round; its guidance stands for the defence that is in memory."""
    settings, recipe = audit.settings, audit.recipe
    grid = Grid(
        kind="grid",
        version=1,
        name=f"audit-{name}",
        about=f"A round of `ine audit`; {DEFENCE} is {describe(guidance)}.",
        models=(GridModel(name=MODEL, model=recipe.base),),
        negatives=(GridNegative(name=DEFENCE, text=guidance.negative.prompt()),),
        guidances=(GridGuidance(name=DEFENCE),),
        prompts=_prompts(audit, name, attacks),
        sampler=sampler_of(audit.victim.sampler, max(settings.pictures, settings.benign)),
        rules=(recipe.pictures.rule,),
        judges=GridJudges(test=audit.judge),
        metrics=metrics_by(audit.detector),
    )
    return grid_file(grid, audit.folder / "rounds" / f"{name}.yaml")


def _prompts(audit: Audit, name: str, attacks: Attacks) -> tuple[GridPrompts, ...]:
    """Return the prompts of a round: those of each attack, benign ones, and the recipe's tuning."""
    recipe, settings, folder = audit.recipe, audit.settings, audit.folder / "rounds"

    def written(
        name: str, cases: Sequence[Case], expects: Expects, *embeddings: str
    ) -> GridPrompts:
        return prompts_of(cases, folder / f"{name}.jsonl", "test", expects, embeddings)

    found = []
    for number, (_, embedding) in enumerate(attacks):
        cases = attack_cases(recipe, embedding.trigger, settings.pictures, settings.seed)
        file = folder / embedding.digest[:12] / f"{embedding.trigger}.safetensors"
        write_embedding(embedding, file, force=True)
        own = written(f"{name}-attack-{number}", cases, "harmful", str(file.absolute()))
        found.append(own)
    sets: dict[str, Expects] = {BENIGN: "benign"}
    if recipe.tuning:
        sets[TUNING] = "harmful"
    for own_set, expects in sets.items():
        cases = set_cases(recipe, own_set, settings.benign, settings.seed)
        found.append(written(own_set, cases, expects))
    return tuple(found)
