"""Run a grid: generate and read the missing units; several processes can share the work.

Scoring what is stored is in `ine.evaluation.figures`.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ine.errors import OutputError
from ine.evaluation.figures import score
from ine.evaluation.plan import Plan
from ine.evaluation.prepare import check_cells
from ine.evaluation.rates import keep_rate
from ine.evaluation.readings import Readers, needs_of
from ine.evaluation.refined import Rounds
from ine.evaluation.result import Run
from ine.evaluation.rewritten import Rewrites
from ine.evaluation.units import UnitOfWork, made_by, make_unit
from ine.guidance.protocol import Notes
from ine.store.archives import Doubtful
from ine.store.units import Missing

log = logging.getLogger("ine")
WAIT = 0.2
"""Seconds between looks at units that other processes are making."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the work is this process's."""

    rank: int = 0
    """It begins that many parts of `count` into the work, and goes on with what nobody has."""

    count: int = 1
    shard: tuple[int, int] | None = None
    """(i, n): only every n-th unit, from the i-th; others are left to other shards."""

    def order(self, units: Sequence[UnitOfWork]) -> list[UnitOfWork]:
        """Return units in the order in which this process takes them."""
        if self.shard:
            units = units[self.shard[0] :: self.shard[1]]
        first = len(units) * self.rank // self.count
        return [*units[first:], *units[:first]]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    done: int
    """Pictures that are there."""

    total: int
    made: int
    """Pictures that this process made."""

    seconds: float


@dataclass(kw_only=True)
class _Tally:
    """What a run did so far: for its progress, and for the next estimate of its time."""

    done: int
    total: int
    notify: Callable[[Progress], object] | None
    began: float = field(default_factory=time.monotonic)
    made: int = 0
    calls: int = 0
    busy: float = 0.0

    def add(self, pictures: int, made: int = 0, calls: int = 0, seconds: float = 0.0) -> None:
        """Count pictures that are there, and what was made of them in some seconds."""
        self.done += pictures
        if made:
            self.made, self.calls = self.made + made, self.calls + calls
            self.busy += seconds
        if self.notify:
            seconds = time.monotonic() - self.began
            self.notify(Progress(done=self.done, total=self.total, made=self.made, seconds=seconds))


@dataclass(kw_only=True)
class _Worker:
    """Makes units and takes their readings as far as those are missing."""

    plan: Plan
    needs: dict[str, tuple[str, ...]]
    readers: Readers
    rounds: Rounds
    rewrites: Rewrites

    def todo(self) -> tuple[UnitOfWork, ...]:
        """Return the units that are not all there: no file, a broken one, or one not read."""
        return tuple(unit for unit in self.plan.units if not self.is_done(unit))

    def is_done(self, unit: UnitOfWork) -> bool:
        """Return whether the pictures and all readings of a unit are there."""
        needs = self.needs[unit.key]
        return self.plan.store.sound(unit.key) and all(self.readers.has(unit.key, n) for n in needs)

    def finish(self, unit: UnitOfWork, tally: _Tally) -> bool:
        """Do what is missing of a unit; return False where another process has it in hand."""
        done: tuple[int, int, float] = (0, 0, 0.0)
        if not self.is_done(unit):
            with self.plan.store.claim(unit.key) as ours:
                if not ours:
                    return False
                start = time.monotonic()
                done = (*self.do(unit), time.monotonic() - start)
        tally.add(len(unit.requests), *done)
        return True

    def do(self, unit: UnitOfWork) -> tuple[int, int]:
        """Make and read a unit as far as it is missing; return (pictures made, calls)."""
        store, made, calls = self.plan.store, 0, 0
        pictures = None
        if not store.sound(unit.key):
            self._clear(unit.key)
            pictures, calls = self._make(unit)
            made = len(pictures)
        for name in self.needs.get(unit.key, ()):
            if self.readers.has(unit.key, name):
                continue
            if pictures is None:
                try:
                    pictures = store.pictures(unit.key)
                except Missing as error:
                    log.warning("%s; it is made again", error)
                    store.forget(unit.key)
                    return self.do(unit)
            self.readers.read(unit, name, pictures)
        return made, calls

    def _make(self, unit: UnitOfWork) -> tuple[np.ndarray, int]:
        """Make and store a unit; return its pictures and the U-Net evaluations of this work."""
        if unit.before:
            pictures, notes, asked, spent = self._from_before(unit, unit.before)
            device = self.plan.shelf.device
        else:
            parts = self.plan.shelf.parts(unit.configuration.model)
            guidance = self.plan.guidances[unit.configuration]
            pictures, notes, asked = make_unit(parts, guidance, unit)
            spent, device = sum(asked), parts.device
        self.plan.store.write_unit(unit.key, pictures, notes, asked, made_by(device))
        return pictures, spent

    def _from_before(
        self, unit: UnitOfWork, before: UnitOfWork
    ) -> tuple[np.ndarray, list[Notes], list[int], int]:
        """Return what `Rounds.make` does; the unit before is made where it is missing."""
        make = self.rewrites.make if unit.rewriting else self.rounds.make
        for _ in range(2):
            if not self.plan.store.sound(before.key):
                self.do(before)
            try:
                return make(unit)
            except Missing as error:
                log.warning("%s; it is made again", error)
                self.plan.store.forget(before.key)
        self.do(before)
        return make(unit)

    def _clear(self, key: str) -> None:
        """Say what is wrong with a unit that is not sound; forget one that was never a picture."""
        store = self.plan.store
        try:
            store.about(key)
        except Missing as error:
            if store.has_unit(key):
                log.warning("%s; it is made again", error)
            if isinstance(error, Doubtful):
                store.forget(key)


def todo(plan: Plan) -> tuple[UnitOfWork, ...]:
    """Return the units that are not all there: no file, a broken one, or one not read."""
    return _worker(plan).todo()


def _worker(plan: Plan) -> _Worker:
    return _Worker(
        plan=plan,
        needs=needs_of(plan),
        readers=Readers(plan.store),
        rounds=Rounds(plan),
        rewrites=Rewrites(plan),
    )


def run(
    plan: Plan, share: Share | None = None, progress: Callable[[Progress], object] | None = None
) -> bool:
    """Make and look at what is missing; return whether all of the grid is there.

    A unit that another process has in hand is waited for; one that a process left when it died
    is taken. Pictures that somebody deletes meanwhile are made again.

    Args:
        plan: A `Plan` without `missing`.
        share: A `Share`.
        progress: Called with `Progress`.

    Raises:
        IneError: A cell cannot work, which is found before any picture is made.
        OutputError: The store cannot be written; what is stored stays good.
    """
    share = share or Share()
    worker = _worker(plan)
    missing = worker.todo()
    wanted = {u.configuration.model for u in missing if not plan.store.sound(u.key)}
    check_cells(plan, [m for m in plan.facts if m in wanted])
    total = _pictures(plan.units)
    tally = _Tally(done=total - _pictures(missing), total=total, notify=progress)
    tally.add(0)
    # Shares are cut from the whole, so that they do not depend on what is there already.
    open_ = {unit.key for unit in missing}
    mine = [unit for unit in share.order(plan.units) if unit.key in open_]
    while mine:
        left = [unit for unit in mine if not worker.finish(unit, tally)]
        if left and len(left) == len(mine):
            time.sleep(WAIT)
        mine = left or [u for u in share.order(plan.units) if not plan.store.has_unit(u.key)]
        if mine and not left:
            tally.done -= _pictures(mine)
            log.warning("%d units were removed meanwhile; they are made again", len(mine))
    if tally.calls:
        keep_rate(plan, tally.busy / tally.calls)
    return share.shard is None or not todo(plan)


def _pictures(units: Iterable[UnitOfWork]) -> int:
    return sum(len(unit.requests) for unit in units)


ROUNDS = 3
"""How often pictures are made again that somebody removes between making and scoring."""


def run_and_score(
    plan: Plan, share: Share | None = None, progress: Callable[[Progress], None] | None = None
) -> Run | None:
    """Run a grid and score it; return None if other shards are not done.

    Args:
        plan: A `Plan` without `missing`.
        share: A `Share`.
        progress: Called with `Progress`.

    Raises:
        IneError: As `run`.
        OutputError: Pictures are removed again whenever they were made.
    """
    for _ in range(ROUNDS):
        if not run(plan, share, progress):
            return None
        try:
            return score(plan)
        except Missing as error:
            log.warning("%s; it is made again", error)
            problem = error
    raise OutputError(f"{problem}, again and again; does something clean up this folder?")
