"""How likely a picture is on its way to the concept, tracked while it forms.

After dynamic negative guidance (DNG: Koulischer et al., arXiv 2410.14398). The formulas below
are our own derivation and the defaults are those reported there, so nothing is claimed to be
equal to it.

The reverse chain of DDPM (Ho et al. 2020, eq. 11) goes from x_t to the next x_s by a Gaussian
whose mean is linear in the noise prediction. With a = abar_t / abar_s and the variance 1 - a,

    log N(x_s; mean(eps), 1 - a) = const - k ||eps_step - eps||^2,
    k = (1 - a) / (2 a (1 - abar_t)),

where eps_step is the prediction that leads exactly from x_t to x_s: what the sampler followed,
guidance and all. Bayes' rule, with eps_neg for the concept and eps_0 for its absence (a rare
concept hardly moves the prediction of the empty text), moves the log-odds of the concept by

    k (||eps_step - eps_0||^2 - ||eps_step - eps_neg||^2)
        = k (2 <eps_step - eps_0, eps_neg - eps_0> - ||eps_neg - eps_0||^2).

A guided sampler exaggerates its steps, and neighbouring steps are not independent; a temperature
below 1 makes up for both. Of a step s that follows t:

    p_s = min(sigmoid(logit(p_t) + tau * evidence) + delta, p_max)

eps_step is read off the latents: x / sqrt(abar) moves by the change of sqrt(1 / abar - 1) times
eps (Song et al. 2021, eq. 14), whatever the scheduler and whoever guided it. With a solver of
higher order that is the mean prediction along the step.

Shape letters: B pictures, C latent channels, H W latent size.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ine.errors import IneError
from ine.guidance.additive import additive
from ine.guidance.gates import Window, check_probing, decide, gate_notes, probe, query_steps
from ine.guidance.negative import Negative
from ine.guidance.protocol import Step, Wanted


@dataclass(frozen=True, kw_only=True)
class Belief:
    """How evidence becomes a probability."""

    prior: float = 0.01
    """Probability of the concept before the first step, in (0, p_max]."""

    tau: float = 0.2
    """Temperature of the evidence, more than 0."""

    delta: float = 2e-4
    """Added at every update, so that what was ruled out early can come back; in [0, 1)."""

    p_max: float = 0.8
    """The most that is believed, in (0, 1); bounds the odds."""

    def __post_init__(self):
        """Raise `IneError` where these are no probabilities."""
        if not 0 < self.prior <= self.p_max < 1:
            raise IneError(
                f"posterior prior {self.prior:g} and p_max {self.p_max:g}: give numbers with "
                "0 < prior <= p_max < 1"
            )
        if not (self.tau > 0 and math.isfinite(self.tau) and 0 <= self.delta < 1):
            raise IneError(
                f"posterior tau {self.tau:g} and delta {self.delta:g}: give tau > 0 and delta in "
                "[0, 1)"
            )

    def after(self, p, evidence):
        """Return the probability after a step, in [0, p_max], from that before it.

        Evidence that is not a number says nothing.
        """
        if math.isnan(evidence):
            return p
        # Beyond +-60 a sigmoid is 0 or 1 to more digits than a float has.
        odds = math.log(max(p, 1e-26) / (1 - p)) + self.tau * evidence
        odds = max(-60.0, min(60.0, odds))
        return min(1 / (1 + math.exp(-odds)) + self.delta, self.p_max)


def followed(x_t, alpha_bar_t, x_s, alpha_bar_s):
    """Return the noise prediction that leads from x_t to x_s, eps_step, (B, C, H, W).

    Args:
        x_t: Noisy latents before the step, (B, C, H, W).
        alpha_bar_t: Their signal power, in (0, 1).
        x_s: Noisy latents after it, (B, C, H, W).
        alpha_bar_s: Their signal power; not equal to `alpha_bar_t`.

    Sources:
        Song et al. 2021 (DDIM), eq. 14.
    """
    before, after = (math.sqrt(1 / a - 1) for a in (alpha_bar_t, alpha_bar_s))
    moved = x_s / math.sqrt(alpha_bar_s) - x_t / math.sqrt(alpha_bar_t)
    return moved / (after - before)


def evidence(eps_step, eps_0, eps_neg, alpha_bar_t, alpha_bar_s):
    """Return by how much a step moves the log-odds of the concept, (B,); formula above.

    Args:
        eps_step: The prediction that was followed, (B, C, H, W).
        eps_0: That of the empty text.
        eps_neg: That of the concept.
        alpha_bar_t: Signal power before the step.
        alpha_bar_s: Signal power after it, more than before.
    """
    a = alpha_bar_t / alpha_bar_s
    k = (1 - a) / (2 * a * (1 - alpha_bar_t))
    # The expanded form: two large sums that differ by little would lose digits.
    towards, concept = (eps_step - eps_0).flatten(1), (eps_neg - eps_0).flatten(1)
    return k * (2 * (towards * concept).sum(1) - concept.pow(2).sum(1))


@dataclass(frozen=True)
class _Track:
    """The probability of one concept per picture, and what the last probes saw."""

    belief: Belief
    p: list
    seen: dict
    """Picture -> (step index, x_t, abar_t, eps_0, eps_neg) of a probe not yet judged."""

    @classmethod
    def start(cls, belief, count):
        return cls(belief, [belief.prior] * count, {})

    def update(self, step: Step, pictures):
        """Judge the probes made at the step before; return the pictures that had one."""
        fresh = [i for i in pictures if i in self.seen and self.seen[i][0] == step.index - 1]
        now = float(step.alpha_bar)
        # A step of some multistep schedulers stays at its noise level, and one from pure noise
        # leads anywhere: they say nothing.
        fresh = [i for i in fresh if 0 < self.seen[i][2] < now]
        if fresh:
            x_t, eps_0, eps_neg = (torch.stack([self.seen[i][k] for i in fresh]) for k in (1, 3, 4))
            before = self.seen[fresh[0]][2]
            eps_step = followed(x_t, before, step.x_t[fresh].float(), now)
            found = evidence(eps_step, eps_0, eps_neg, before, now).tolist()
            for i, moved in zip(fresh, found, strict=True):
                self.p[i] = self.belief.after(self.p[i], moved)
        return fresh

    def see(self, step: Step, pictures, empty, negative):
        """Keep what a probe saw; U-Net outputs (pictures, C, H, W)."""
        here = step.of(pictures)
        x_t = here.x_t.float()
        eps_0, eps_neg = here.noise(empty).float(), here.noise(negative).float()
        for place, i in enumerate(pictures):
            row = (x_t[place], float(step.alpha_bar), eps_0[place], eps_neg[place])
            self.seen[i] = (step.index, *row)


@dataclass(frozen=True)
class Posterior:
    """A gate: open where the concept's probability is above a threshold.

    A probe at step i, a call of its own, is judged at step i + 1, when it is known where the
    sampler went; the probability is held until the next. Steps without a probe leave it as it
    is. Several negatives are tracked apart, and the likeliest decides.
    """

    threshold: float = 0.05
    """In [0, 1); at `belief.p_max` or more the gate never opens."""

    queries: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15)
    """Where in the run to probe, fractions in [0, 1): at the first step there or after."""

    belief: Belief = Belief()

    latch: bool = True
    """Once open, stay open; without it the gate shuts when the probability falls again."""

    window: Window = field(default_factory=Window)

    def __post_init__(self):
        """Raise `IneError` where a setting makes no sense."""
        check_probing(self.queries, self.window, self.threshold)

    def begin(self, prompts, negatives):
        """Encode the negatives once."""
        count = len(prompts.texts)
        return _PosteriorSession(
            gate=self,
            negatives={n.name: n.condition(prompts) for n in negatives},
            tracks={n.name: _Track.start(self.belief, count) for n in negatives},
            opened=[None] * count,
            scores=[[] for _ in range(count)],
        )


@dataclass(frozen=True, kw_only=True)
class _PosteriorSession:
    gate: Posterior
    negatives: dict
    tracks: dict
    opened: list
    """Per picture: [step, negative, p] that opened it; None while closed."""

    scores: list

    def open(self, step, ask, plain):
        gate, count = self.gate, len(self.opened)
        self._judge(step)
        if not gate.window.holds(step):
            return ()
        if step.index in query_steps(gate.queries, step.count):
            undecided = tuple(i for i in range(count) if not (gate.latch and self.opened[i]))
            # What is probed at the last step could never be judged.
            if undecided and step.index + 1 < step.count:
                self._probe(step, ask, plain, undecided)
        return tuple(i for i in range(count) if self.opened[i])

    def _judge(self, step):
        judged = set()
        for name, track in self.tracks.items():
            for i in track.update(step, range(len(self.opened))):
                # What is compared is what is logged, so a threshold taken from logs holds.
                self.scores[i].append([step.index, name, round(track.p[i], 4)])
                judged.add(i)
        decide(self.opened, self.scores, judged, step, self.gate.threshold)

    def _probe(self, step, ask, plain, pictures):
        empty = plain["empty"][list(pictures)]
        for name, output in probe(ask, self.negatives, pictures, len(self.opened)).items():
            self.tracks[name].see(step, pictures, empty, output)

    def notes(self):
        return gate_notes(self.opened, self.scores)


@dataclass(frozen=True)
class Dynamic:
    """Additive guidance whose negative is as strong as the concept is likely.

        eps = eps_0 + w (eps_pos - eps_0) - s p / (1 - p) (eps_neg - eps_0)

    After DNG, whose weight is the odds too. The probability p is that of the concept at the
    step, per picture, as derived above; three predictions a step. With matching, p is of
    whichever negative the picture uses.
    """

    negative: Negative = field(default_factory=Negative)
    strength: float = 5.0
    """s, the strength at even odds; at most s p_max / (1 - p_max) is used."""

    belief: Belief = Belief()

    @contextmanager
    def begin(self, prompts):
        """Encode prompts, negative and the empty text once."""
        yield _DynamicSession(
            positive=prompts.positive(),
            empty=prompts.empty(),
            slot=self.negative.begin(prompts),
            scale=prompts.scale,
            strength=self.strength,
            track=_Track.start(self.belief, len(prompts.texts)),
        )


@dataclass(frozen=True, kw_only=True)
class _DynamicSession:
    positive: object
    empty: object
    slot: object
    scale: float
    strength: float
    track: _Track

    def predict(self, step, ask, pictures=None):
        rows = tuple(range(len(self.track.p))) if pictures is None else tuple(pictures)
        out = ask(
            [
                Wanted.of("empty", self.empty, pictures),
                Wanted.of("positive", self.positive, pictures),
                *self.slot.wanted(step, pictures),
            ]
        )
        negative = self.slot.settle(step, pictures, out)
        self.track.update(step, rows)
        self.track.see(step, rows, out["empty"], negative)
        odds = [self.track.p[i] / (1 - self.track.p[i]) for i in rows]
        strength = self.strength * negative.new_tensor(odds).view(-1, 1, 1, 1)
        return additive(out["empty"], out["positive"], negative, self.scale, strength)

    def notes(self):
        p = [{"posterior": round(p, 4)} for p in self.track.p]
        return [{**a, **b} for a, b in zip(self.slot.notes(), p, strict=True)]
