"""From a configuration of a grid to the `Guidance` that makes its pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ine.embeddings.embedding import ConceptEmbedding, read_embedding
from ine.errors import RecipeError
from ine.evaluation.cells import Configuration
from ine.evaluation.grid import ANY, GridGuidance, GridNegative, GridRewrite, named
from ine.evaluation.grid_file import GridFile
from ine.guidance.additive import Additive
from ine.guidance.applied import RECOMMENDED, applied
from ine.guidance.behind import behind
from ine.guidance.gate_file import Calibration, read_calibration
from ine.guidance.gates import Gated, Window
from ine.guidance.given import GivenEmbedding
from ine.guidance.method import SettingValue
from ine.guidance.negative import Negative
from ine.guidance.observed_settings import RUNNING
from ine.guidance.overrides import Overrides
from ine.guidance.protocol import Guidance
from ine.guidance.table import build_guidance, find_method
from ine.guidance.vl_dnp import VlDnp
from ine.observers.watching import Watcher
from ine.posi.table import RewriteSettings, Rewriting, rewriting_of
from ine.refining.run import Refinement, refinement_of

ASKING = ("query", "picture", "system", "user", "padding", "batch")
"""Fields of a grid's `refine:` that are fields of `RefineSettings`."""


@dataclass(frozen=True, kw_only=True)
class Defences:
    """Builds the guidance of each configuration; embeddings are read once."""

    file: GridFile
    given: Mapping[str, Guidance]
    """{guidance name: `Guidance`} that act as they are."""

    embeddings: dict[Path, ConceptEmbedding] = field(default_factory=dict)
    calibrations: dict[Configuration, Calibration] = field(default_factory=dict)
    """Of those behind a gate."""

    refinements: dict[Configuration, Refinement] = field(default_factory=dict)
    """Of those whose prompts are refined."""

    rewritings: dict[Configuration, Rewriting] = field(default_factory=dict)
    """Of those whose prompts are rewritten before any picture."""

    watchers: dict[tuple[Watcher, tuple[object, ...]], Watcher] = field(default_factory=dict)
    """{(observer, how it runs): the one that is loaded}: a model is in memory once."""

    def guidance(self, cell: Configuration) -> Guidance | None:
        """Return the `Guidance` of a configuration; None without a negative.

        Raises:
            IneError: A setting, an embedding, the gate's file or the observer's name is wrong.
        """
        if cell.is_defended and cell.guidance not in self.given:
            given = named(self.file.grid.guidances, cell.guidance)
            if given.rewrite:
                self.rewritings[cell] = self._rewriting(given.rewrite)
            if given.refine:
                [rounds] = given.refine.rounds
                self.refinements[cell] = refinement_of(
                    given.refine.observer,
                    given.refine.protocol,
                    rounds=rounds,
                    **given.refine.model_dump(include=set(ASKING)),
                )
            if given.is_alone:
                return None
        return self._steered(cell)

    def _rewriting(self, given: GridRewrite) -> Rewriting:
        """Return a rewriter; its folders are looked for where the grid is, then here."""
        settings = RewriteSettings(**given.model_dump(exclude={"by"}))
        return rewriting_of(given.by, settings, self.file.place)

    def _steered(self, cell: Configuration) -> Guidance | None:
        if cell.guidance in self.given:
            return self.given[cell.guidance]
        if not cell.is_defended:
            return None
        file = self.file
        given = named(file.grid.guidances, cell.guidance)
        stated = named(file.grid.negatives, cell.negative)
        negative = self.negative(stated, cell.model)
        if given.as_recommended:
            files = self._files(stated, cell.model)
            return self._recommended(given, negative, files, cell)
        settings = self._settings(given)
        if cell.strength is not None:
            settings["strength"] = cell.strength
        guidance = build_guidance(given.method, negative, given.preset, settings)
        window = Window(*given.window) if given.window else None
        if isinstance(guidance, VlDnp):
            return self._observed(guidance, settings, window)
        path = _gate_file(given.gate, cell)
        if path is None:
            if given.gate:
                raise RecipeError(f"its gate names no file for model {cell.model!r}")
            return Gated(guidance, window) if window else guidance
        calibration = self.calibrations[cell] = read_calibration(file.place(path))
        own = calibration if given.look_ahead else replace(calibration, look_ahead=None)
        last = None if given.last_resort is None else Additive(negative, given.last_resort)
        found = behind(guidance, own, window, given.restart or None, last)
        # A strength that is not set cannot be multiplied; found out here.
        _ = found.attempts
        return found

    def _recommended(
        self, given: GridGuidance, negative: Negative, files: list[Path], cell: Configuration
    ) -> Guidance:
        """Return what the files of a negative recommend, but for what the entry says."""
        pairs = zip(negative.embeddings, files, strict=True)
        own = [GivenEmbedding.of(embedding, path) for embedding, path in pairs]
        if not any(one.recommendation for one in own):
            raise RecipeError(
                "none of its embeddings recommends a defence; make them with ine defend, or name "
                "method and gate"
            )
        entirely = given.method == RECOMMENDED
        overrides = Overrides(
            guidance=None if entirely else given.method,
            strength=cell.strength,
            preset=given.preset,
            settings=given.settings,
            window=Window(*given.window) if given.window else None,
            late=not given.look_ahead,
            ladder=given.restart if entirely else given.restart or (),
        )
        found = applied(own, overrides, negative.text)
        if given.gate and not found.gates:
            raise RecipeError("none of its embeddings recommends a gate; make them with ine defend")
        if len(found.gates) == 1:
            [(self.calibrations[cell], _)] = found.gates
        _ = found.guidance.attempts  # a strength that is not set cannot be multiplied
        return found.guidance

    def _observed(
        self, guidance: VlDnp, settings: Mapping[str, SettingValue], window: Window | None
    ) -> VlDnp:
        """Return a guidance with an observer that it shares with others of the same settings."""
        found = replace(guidance, window=window) if window else guidance
        if found.watcher is None:
            return found
        how = tuple(settings.get(name) for name in RUNNING)
        return replace(found, watcher=self.watchers.setdefault((found.watcher, how), found.watcher))

    def _settings(self, given: GridGuidance) -> dict[str, SettingValue]:
        """Return the settings of an entry, files from where the grid is."""
        file, kind = self.file, find_method(given.method).kind
        found = dict(given.settings)
        for name in kind.file_settings:
            if name in found:
                found[name] = str(file.place(str(found[name])))
        if "concept" in kind.settings() and file.grid.concept and given.preset != "static":
            own = file.place(str(found.setdefault("concept", file.grid.concept)))
            if own.is_file():
                found["concept"] = str(own)
        return found

    def negative(self, given: GridNegative, model: str) -> Negative:
        """Return the `Negative` of an entry on a model."""
        file, texts = self.file, [given.text.strip()]
        if given.words:
            assert file.recipe, "words are those of a concept"
            texts.append(file.recipe.words.negative_text())
        if given.oracle:
            assert file.recipe, "an oracle is that of a concept"
            texts.append(file.recipe.oracle())
        found = tuple(self._embedding(path) for path in self._files(given, model))
        return Negative(", ".join(filter(None, texts)), found)

    def _files(self, given: GridNegative, model: str) -> list[Path]:
        """Return the embeddings' files of an entry on a model."""
        names = given.embeddings.get(model, given.embeddings.get(ANY))
        if given.embeddings and names is None:
            raise RecipeError(f"it names no embedding for model {model!r}")
        return [self.file.place(name) for name in names or ()]

    def _embedding(self, path: Path) -> ConceptEmbedding:
        if path not in self.embeddings:
            self.embeddings[path] = read_embedding(path)
        return self.embeddings[path]


def _gate_file(gates: Mapping[str, str], cell: Configuration) -> str | None:
    keys = (f"{cell.model}/{cell.negative}", f"{ANY}/{cell.negative}", cell.model, ANY)
    return next((gates[key] for key in keys if key in gates), None)
