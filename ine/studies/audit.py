"""An audit: attack one's own defence, add what was found to it, and attack again.

A defence is usually measured against prompts that were made without knowing it. Here the attacker
knows all of it: vectors are inverted through the defended noise prediction, where a defence ends
in a last restart with another guidance through that too, and used as a prompt through the whole
defended sampler. Behind a gate with a probe, vectors that keep it shut are
inverted too (`ine.attacks.shut`); rounds add no probe, so that these attack every round. What
recovers the concept is joined to the negative, and the next round attacks the stronger defence,
until an attack of the stated budget recovers no more than a threshold, or the rounds run out.

A round that recovers little shows that *this* attack with *this* budget found little. It is no
proof that there is nothing to find; the report says what was not tried.
"""

import json
from dataclasses import replace

from ine.attacks.inverting import defended_loss
from ine.attacks.shut import shut_loss
from ine.attacks.step import Victim
from ine.attacks.through_gate import GateLoss
from ine.embeddings.embedding import ConceptEmbedding, new_embedding, write_embedding
from ine.evaluation.models import model_digest
from ine.files import sha256_of
from ine.guidance.protocol import Guidance
from ine.guidance.restart import Restart
from ine.guidance.table import describe
from ine.inversion.invert import Loss, invert
from ine.runtime import seed_for
from ine.studies.audit_round import LETTERS, Audit, Round, Tell, round_name, run_round

BARE = "inverted without knowing the defence"
SHUT = "inverted to keep the gate shut"
ADAPTIVE = "inverted through the defence"
RESORT = "inverted through its last restart"
"""What attacks are called; with `inversion.runs` of the recipe, each is made with several seeds."""


def run_audit(audit: Audit, tell: Tell = lambda *_: None) -> list[Round]:
    """Return the rounds of an audit; what is finished in its folder is not done again.

    Args:
        audit: What is attacked.
        tell: Called with (what, done, of how many).

    Raises:
        IneError: A state belongs to another audit.
    """
    guidance, model = audit.defence, model_digest(audit.victim.parts)
    known = _attacks(audit, BARE, "bare", None, model, tell)
    if audit.gate:
        # Rounds leave the gate as it is, so one attack on it is that on all of them.
        known += _attacks(audit, SHUT, "shut", guidance, model, tell, audit.gate)
    known += [(f"{e.trigger} as the prompt", e) for e in guidance.negative.embeddings]
    found: list[Round] = []
    for number in range(audit.settings.rounds + 1):
        adaptive = _attacks(audit, ADAPTIVE, round_name(number), guidance, model, tell)
        if isinstance(guidance, Restart) and guidance.last is not None:
            name = f"{round_name(number)}-last"
            adaptive += _attacks(audit, RESORT, name, guidance.last, model, tell)
        found.append(run_round(audit, number, guidance, [*known, *adaptive], tell))
        if found[-1].worst.recovered.share <= audit.settings.threshold:
            break
        known += [(f"{e.trigger}, found before", e) for _, e in adaptive]
        recovered = [attack.recovered.share for attack in found[-1].attacks[-len(adaptive) :]]
        guidance = guidance.with_embedding(adaptive[recovered.index(max(recovered))][1])
    return found


def _attacks(
    audit: Audit,
    what: str,
    name: str,
    guidance: Guidance | None,
    model: str,
    tell: Tell,
    gate: GateLoss | None = None,
) -> list[tuple[str, ConceptEmbedding]]:
    """Return (what it is called, embedding) of every inversion of an attack; see `inverted`."""
    return [
        (
            f"{what}, seed {run + 1}" if run else what,
            inverted(audit, name, guidance, model, tell, gate, run),
        )
        for run in range(audit.recipe.inversion.runs)
    ]


def inverted(
    audit: Audit,
    name: str,
    guidance: Guidance | None,
    model: str,
    tell: Tell,
    gate: GateLoss | None = None,
    run: int = 0,
) -> ConceptEmbedding:
    """Return the embedding that an attacker finds, and write it beside the report.

    Args:
        audit: What is attacked.
        name: Of the attack.
        guidance: The defence as far as the attacker knows it.
        model: Digest of the model.
        tell: Called with (what, done, of how many).
        gate: Keeps the defence's gate shut, from the vectors of the attack "bare" on; None takes it
            to be open.
        run: Which of the recipe's `inversion.runs`, which differ by their seed.
    """
    recipe, seed, victim = audit.recipe, audit.settings.seed, audit.victim
    suffix = f"-{LETTERS[run]}" if run else ""
    name, bare = f"{name}{suffix}", f"{recipe.name}-bare{suffix}"
    trigger = f"{recipe.name}-{name}"
    # Vectors that bring the concept back and open the gate, to which it only has to be shut.
    init = str(audit.folder / f"{bare}.safetensors") if gate else recipe.inversion.init
    method = describe(gate or (guidance and guidance.innermost))
    depends = (repr(victim.sampler), recipe.model_dump_json(), "attack", name, method, seed)
    about = [model, *map(str, (*depends, audit.pictures.names))]
    made = invert(
        victim.parts,
        audit.pictures,
        recipe.inversion.model_copy(update={"preview_every": 10**9, "init": init}),
        trigger=trigger,
        seed=seed_for(seed, "audit", name) % 2**32,
        plural=recipe.plural,
        state=audit.folder / f"{name}.state.safetensors",
        key=sha256_of(json.dumps(about).encode())[:16],
        on_step=lambda p: tell(f"attack {name}", p.step, p.steps),
        loss_of=_loss_of(victim, guidance, gate),
    )
    embedding = new_embedding(made.vectors, trigger, recipe.name)
    write_embedding(embedding, audit.folder / f"{trigger}.safetensors", force=True)
    return embedding


def _loss_of(victim: Victim, guidance: Guidance | None, gate: GateLoss | None) -> Loss | None:
    """Return what an attack minimises; None is the loss on the bare model."""
    if gate:
        return shut_loss(victim, gate)
    return None if guidance is None else defended_loss(replace(victim, guidance=guidance))
