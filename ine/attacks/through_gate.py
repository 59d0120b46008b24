"""Keeping a gate shut: the term of an attacker who optimises through the score of its probe.

A probe gate reads the U-Net on the *empty* text, at the end of a coarse run with the prompt
(`ine.guidance.look_ahead`): only through that run does its score depend on the prompt, so gradients
go through all its steps, as the gate itself takes them. Behind a shut gate a picture is the
undefended one, so the rest of the loss is that of the bare model (`ine.attacks.shut`):

    L = E || eps(x_t, t, prompt) - eps ||^2 + w E softplus(max_k (s_k - threshold_k))

with s_k the log-odds of probe k for the picture that a start noise and the prompt lead to. Softplus
is the smooth hinge max(0, .): it pushes where the gate would open and hardly any more below.

A gate at half the run (`ine.guidance.probe`) is asked at its own noise level, to which a coarse run
stands in for the real one.

Sources:
    The logit of a detector in the attacker's objective: Carlini and Wagner 2017 (arXiv
    1705.07263). Attacks through every part of a defence: Tramer et al. 2020 (arXiv 2002.08347).

Shape letters: B pictures, C latent channels, H W latent size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import softplus

from ine.attacks.objectives import Cost
from ine.attacks.step import Victim
from ine.calibration.features import noise_levels
from ine.errors import IneError
from ine.guidance.any_gate import AnyGate
from ine.guidance.beside import Beside
from ine.guidance.coarse import check_model
from ine.guidance.gates import Gated
from ine.guidance.look_ahead import ConceptProbe, LookAhead
from ine.guidance.method import Around
from ine.guidance.negative import Negative
from ine.guidance.probe import ProbeGate
from ine.guidance.protocol import Gate, Guidance, UNetQuery
from ine.guidance.restart import Restart
from ine.models.parts import DiffusionParts
from ine.sampling import answer_queries

WEIGHT = 0.003
"""w, by default: on the bundled model it shuts the gate as well as 0.1 does (one seed)."""


@dataclass(frozen=True, kw_only=True)
class GateLoss:
    """What an attacker adds to a loss to keep a gate shut."""

    looks: tuple[LookAhead, ...]
    """Every look that could open the gate; a gate at half the run as a look-ahead to its level."""

    weight: float = WEIGHT
    """w, above 0."""

    own: Negative = field(default_factory=Negative)
    """What acts on every picture beside the defence, see `ine.guidance.beside`."""

    pictures: int = 4
    """Coarse runs per step of an inversion; with k steps each takes 2 k + 1 U-Net evaluations."""

    def excess(
        self,
        victim: Victim,
        texts: Sequence[str],
        noise: torch.Tensor,
        vectors: Mapping[str, tuple[torch.Tensor, ...]] | None = None,
    ) -> tuple[torch.Tensor, Cost]:
        """Return (largest log-odds above a threshold (B,), U-Net evaluations).

        The gate of a picture opens where the number is above 0.

        Args:
            victim: Model and sampler; its guidance is not used.
            texts: B prompts.
            noise: Start noise of the pictures, (B, C, H, W).
            vectors: {trigger: vectors per text encoder}; may require gradients.

        Raises:
            NotFinite: What the probe reads is not finite.
        """
        step, prompts, cost = victim.step(noise, 0), victim.prompts(texts, vectors), 0
        if self.own.prompt():
            own = self.own.condition(prompts).repeat(len(prompts.texts))
            prompts = replace(prompts, own=own)

        def query_unet(queries: Sequence[UNetQuery]) -> dict[str, torch.Tensor]:
            nonlocal cost
            cost += len(queries) * len(prompts.texts)
            return answer_queries(victim.parts.unet, step.x_t, step.t, queries)

        found, known = [], {}
        for look in self.looks:
            place = (look.steps, look.timestep, look.scale)
            if place not in known:
                known[place] = look.begin(prompts).features(step, query_unet)
            found += [p.probe.scores(known[place]) - p.threshold for p in look.probes]
        return torch.stack(found).amax(0), cost

    def of(self, excess: torch.Tensor) -> torch.Tensor:
        """Return the term of each picture, w softplus(excess), (B,)."""
        return self.weight * softplus(excess)


def gates_of(guidance: Guidance | None) -> tuple[LookAhead | ProbeGate, ...]:
    """Return the gates of a defence that read probes, from the outside in; none for the others."""
    gates: list[Gate] = []
    while isinstance(guidance, Around):
        if isinstance(guidance, Gated | Restart):
            gates += guidance.gate.gates if isinstance(guidance.gate, AnyGate) else [guidance.gate]
        guidance = guidance.guidance
    return tuple(gate for gate in gates if isinstance(gate, LookAhead | ProbeGate))


def has_coarse_run(parts: DiffusionParts) -> bool:
    """Return whether a coarse run is defined for a model."""
    try:
        check_model(parts)
    except IneError:
        return False
    return True


def gate_loss(victim: Victim, concept: str, weight: float = WEIGHT) -> GateLoss:
    """Return the term that keeps the gate of a victim's defence shut.

    Args:
        victim: Model, sampler and defence.
        concept: The attacker's; of a gate for several concepts only its probes count, since the
            others steer away from something else.
        weight: w, above 0.

    Raises:
        IneError: The defence has no gate with a probe, or the model no coarse run.
    """
    gates = gates_of(victim.guidance)
    if not gates:
        raise IneError(
            "attack: the defence has no gate with a probe to go through (an observer's answer has "
            "no gradient); name one with --gate FILE, or take the gate to be open"
        )
    check_model(victim.parts)
    ahead = next((gate for gate in gates if isinstance(gate, LookAhead)), None)
    looks = [
        look
        for gate in gates
        for look in ([gate] if isinstance(gate, LookAhead) else _as_looks(gate, victim, ahead))
    ]
    named = any(probe.concept == concept for look in looks for probe in look.probes)
    kept = [_for(look, concept) for look in looks] if named else looks
    beside = victim.guidance.own if isinstance(victim.guidance, Beside) else Negative()
    return GateLoss(looks=tuple(look for look in kept if look), weight=weight, own=beside)


def _as_looks(gate: ProbeGate, victim: Victim, ahead: LookAhead | None) -> list[LookAhead]:
    """Return the looks of a gate during the run as coarse runs, alike with a look-ahead's."""
    levels = noise_levels(victim.parts, victim.sampler, gate.queries)
    return [
        LookAhead(
            probes=(ConceptProbe(concept=gate.concept, probe=probe, threshold=gate.threshold),),
            steps=ahead.steps if ahead else LookAhead.steps,
            timestep=min(max(round(level), 1), 998),
            scale=ahead.scale if ahead else None,
        )
        for probe, (level, _) in zip(gate.probes, levels, strict=True)
    ]


def _for(look: LookAhead, concept: str) -> LookAhead | None:
    """Return a look with the probes of one concept; None where it has none."""
    probes = tuple(probe for probe in look.probes if probe.concept == concept)
    return replace(look, probes=probes) if probes else None
