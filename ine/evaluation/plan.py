"""The plan of a grid: its cells, the units of pictures that they need, and where those are kept."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ine.detectors.base import JOIN
from ine.detectors.features import has_features
from ine.detectors.scan import detectors_for
from ine.evaluation.cells import Cell, Configuration
from ine.evaluation.expand import Expansion
from ine.evaluation.models import ModelCache, ModelFacts
from ine.evaluation.units import UnitOfWork, plan_units, refined_unit, rewritten_unit
from ine.guidance.cfg import ClassifierFree
from ine.guidance.protocol import Cost
from ine.sampling import SamplerSettings
from ine.store.pictures import Store
from ine.text.encode import TextOptions


@dataclass(frozen=True, kw_only=True)
class Plan(Expansion):
    """A grid with its models, and where its pictures are kept."""

    folder: Path
    store: Store
    shelf: ModelCache
    facts: dict[str, ModelFacts | None]
    """By model; None where it is not available here."""

    only: tuple[str, ...] = ()
    limit: int | None = None

    def sampler(self, model: str) -> SamplerSettings:
        """Return the `SamplerSettings` of a model: the grid's, else what suits the model."""
        given, own = self.file.grid.sampler, self.facts[model]
        reading = TextOptions(weights=given.weights, clip_skip=given.clip_skip)
        usual = SamplerSettings()
        return SamplerSettings(
            scheduler=given.scheduler or (own or usual).scheduler,
            steps=given.steps or (own or usual).steps,
            guidance_scale=given.guidance_scale or (own or usual).guidance_scale,
            batch=given.batch or (own or usual).batch,
            reading=reading,
        )

    @cached_property
    def units_of(self) -> dict[Cell, list[UnitOfWork]]:
        """Return {`Cell`: its units}, of the models that are here."""
        known: dict[str, UnitOfWork] = {}
        found: dict[Cell, list[UnitOfWork]] = {}
        for cell in self.cells:
            configuration, prompts = cell.configuration, self.sets[cell.prompts]
            model = configuration.model
            facts = self.facts[model]
            if facts is None or prompts.found is None:
                continue
            guidance = self.guidances[configuration]
            refinement = self.refinements.get(configuration)
            rewriting = self.rewritings.get(configuration)
            if configuration.is_defended and not (guidance or refinement or rewriting):
                continue
            items = prompts.items(cell.seed)
            found[cell] = plan_units(configuration, guidance, items, self.sampler(model), facts)
            if rewriting:
                found[cell] = [rewritten_unit(unit, rewriting) for unit in found[cell]]
            if refinement:
                found[cell] = [refined_unit(unit, refinement) for unit in found[cell]]
            for number, unit in enumerate(found[cell]):
                # The same pictures under two names are one unit.
                found[cell][number] = replace(known.setdefault(unit.key, unit), places=unit.places)
        return found

    @cached_property
    def units(self) -> tuple[UnitOfWork, ...]:
        """Return every unit once, in the order of work: model by model."""
        found: dict[str, UnitOfWork] = {}
        for units in self.units_of.values():
            for unit in units:
                found.setdefault(unit.key, unit)
        return tuple(found.values())

    def detectors_of(self, prompts: str) -> tuple[str, ...]:
        """Return the names of the detectors that look at a prompt set's pictures."""
        role = self.sets[prompts].spec.role
        own = self.judge(role)
        names = [own] if own else detectors_for(self.file.rules)
        return tuple(dict.fromkeys(part for name in names for part in name.split(JOIN)))

    def judge(self, role: str) -> str | None:
        """Return the detector that looks instead of the rules' own; None where they do."""
        return getattr(self.file.grid.judges, role)

    @cached_property
    def features_by(self) -> str:
        """Return the name of the detector whose features judge-cosine compares."""
        own = [part.detector for rule in self.file.rules for part in rule.parts]
        options = [name for name in (self.judge("tune"), *own) if name]
        named = self.file.grid.metrics.features
        return named or next(filter(has_features, options), options[0])

    def cost(self, configuration: Configuration) -> Cost:
        """Return the `Cost` of one picture of a configuration."""
        sampler = self.sampler(configuration.model)
        guidance = self.guidances[configuration]
        cost = (guidance or ClassifierFree()).cost(sampler.guidance_scale, sampler.steps)
        refinement = self.refinements.get(configuration)
        if refinement:
            # Of one more round, at most: what is kept is not generated again.
            return Cost(cost.nfe, exact=False)
        return cost

    def pictures(self, cell: Cell) -> int | None:
        """Return how many pictures a cell has; None where it is not known."""
        return self.sets[cell.prompts].count
