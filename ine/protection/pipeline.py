"""One call that defends the user's own diffusers pipeline.

The pipeline stays what it is: its prompts, scheduler, callbacks and LoRAs. At every step its
U-Net is asked about an unconditional and a conditional row per picture, of outputs u and c, and
the pipeline makes u + w (c - u) of them. Here the U-Net's forward is wrapped, and returns c as
it is with

    u' = (eps* - w c) / (1 - w),   so that   u' + w (c - u') = eps*,

the prediction of a guidance method. c is left alone because `guidance_rescale` measures its
spread. u' is computed in float32 and rounded once to the pipeline's dtype; the pipeline
multiplies it by w - 1, so eps* is met to w - 1 times that rounding, as in plain guidance.

The method works as though the user had written no negative prompt: on eps_0 of the empty text,
c, and the embedding's n. What the user's own negative does to plain guidance is added:

    eps* = M(eps_0, c, n; w_0) + [u + w (c - u)] - [eps_0 + w_0 (c - eps_0)]

with w_0 the scale that the run began with (a callback may move w; the defence then keeps its
strength). For M plain guidance with the embedding, n + w (c - n), this is
u + w (c - u) - (w - 1) (n - eps_0): the user's plain pair, and ours beside it. With no negative
of the user's, u = eps_0 and w = w_0, it is M itself: what `negative_prompt_embeds` would do.

Without guidance (w <= 1: models of few steps) the pipeline asks about conditional rows alone and
takes the answer as it is, which is then eps* = M(eps_0, c, n; 1). Methods whose negative stands in
a term of weight w - 1 refuse such a run.

UNet rows per picture and step: those of the method, two with "cfg"; behind a gate two more
than the method adds to plain guidance; with a negative of the user's own, two more.

Shape letters: B pictures of a call, C latent channels, H W latent size, L tokens, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from diffusers import DiffusionPipeline

from ine.embeddings.embedding import ConceptEmbedding
from ine.errors import IneError
from ine.guidance.applied import RECOMMENDED, applied
from ine.guidance.coarse import check_model
from ine.guidance.gates import Gated, Window
from ine.guidance.given import GivenEmbedding
from ine.guidance.look_ahead import LookAhead
from ine.guidance.method import Method
from ine.guidance.negative import Negative
from ine.guidance.observed import ObserverGate
from ine.guidance.overrides import Overrides
from ine.guidance.probe import ProbeGate
from ine.guidance.protocol import Gate, Guidance
from ine.guidance.restart import Restart
from ine.guidance.table import METHODS, build_guidance, find_method
from ine.protection.handle import ON_OVERFLOW, Protection
from ine.protection.interception import holder_of
from ine.protection.parts import check_known, parts_of
from ine.protection.prompts import (
    Embeddings,
    check_negative,
    none_given,
    read_given,
    rewrites_prompts,
)
from ine.protection.restarts import begins_with_noise, can_restart, copied


def protect(
    pipe: DiffusionPipeline,
    embeddings: Embeddings = None,
    guidance: str | Guidance | None = None,
    gate: Gate | str | None = RECOMMENDED,
    strength: float | None = None,
    on_overflow: str = "raise",
    restart: bool = True,
    withhold: bool = False,
) -> Protection:
    """Defend a diffusers pipeline until the handle's `remove`, or within a `with` block.

    Afterwards `pipe("...")` is defended, with whatever arguments it takes; no weights change.
    A U-Net belongs to one protection: other pipelines that share it are refused while it lasts.
    Textual-inversion tokens and LoRAs loaded into the pipeline act in our negative too.

    A file of `ine defend` is used as it recommends, its gate read from beside it, which is logged;
    what is given here goes before that. Of several such files each acts only on the pictures in
    which its own probe finds its concept.

    Args:
        pipe: A Stable Diffusion pipeline, one of `KNOWN`, in any dtype, offloaded or not.
        embeddings: A `ConceptEmbedding` or the path of one, or several, joined in one string.
        guidance: A name of `ine.guidance.table.METHODS`, or a `Guidance` with a negative of
            its own; `embeddings` is then left out. None is as the files recommend, else "cfg".
        gate: When to act, a gate of `ine.guidance.gates`; "recommended" is as the files
            recommend, else always, None is always.
        strength: The method's strength, where it is named and has one; 0 or more.
        on_overflow: What to do where the U-Net or the VAE answers NaN or infinity, as float16
            does beyond 65504, and the picture would be black: "raise" `NotFinite` from the
            pipeline's call, or "warn" and mark it in `Protection.notes`.
        restart: Whether a picture is made again where its file recommends that and the concept
            still shows at half the run, see `ine.protection.restarts`. ControlNet pipelines,
            and inpainting with a U-Net that does not read the mask, cannot, and say so.
        withhold: Whether a picture in which the concept shows after its last restart too becomes
            what the VAE makes of empty latents. `Protection.left` has its number either way.

    Returns:
        Protection: The handle.

    Raises:
        IneError: The pipeline's class is unknown or it is protected already, nothing to steer
            away from is given, a gate that a file recommends is not beside it, the method is
            unknown or rewrites prompts, its observer cannot be loaded, the scheduler cannot be
            copied for restarts, nothing restarts although pictures are to be withheld, or the
            strength makes no sense. Later, from the pipeline's call:
            guidance scale not above 1.
        EmbeddingError: An embedding cannot be read or is of another width.
    """
    if on_overflow not in ON_OVERFLOW:
        raise IneError(f"on_overflow is {on_overflow!r}; give one of {', '.join(ON_OVERFLOW)}")
    check_known(pipe)
    if isinstance(holder_of(pipe.unet), Protection):
        raise IneError(
            f"this {type(pipe).__name__} (or one that shares its U-Net) is protected already; call "
            ".remove() on the first handle, or give all embeddings in one call"
        )
    parts = parts_of(pipe)
    given = read_given(embeddings)
    ladder = None if restart else ()
    chosen = _recommended(given, guidance, gate, strength, ladder, can_restart(pipe))
    own_gate = None if chosen or gate == RECOMMENDED else gate
    if chosen is None:
        chosen = _guidance([one.embedding for one in given], guidance or "cfg", strength)
    again, chosen = _restart(chosen, pipe)
    if withhold and again is None:
        raise IneError(
            "protect: withhold=True needs restarts, after the last of which the gate looks once "
            "more; give a file of ine defend, and a pipeline without a ControlNet, for "
            "inpainting one whose U-Net reads the mask"
        )
    method, gate = _split(chosen, own_gate)
    check_negative(parts, method.negative)
    if isinstance(gate, LookAhead):
        check_model(parts)
    if isinstance(gate, ObserverGate):
        gate.check(parts)
    return Protection(pipe, parts, method, gate, on_overflow, again, withhold)


def _recommended(
    given: Sequence[GivenEmbedding],
    guidance: str | Guidance | None,
    gate: Gate | str | None,
    strength: float | None,
    ladder: tuple[float, ...] | None,
    able: bool,
) -> Guidance | None:
    """Return the guidance that files recommend; None if they do not, or an object is given.

    Its gate is in it, or the one that is given, and its restarts if the loop is able and the
    ladder says no other.
    """
    if not (guidance is None or isinstance(guidance, str)):
        return None
    defences = [one for one in given if one.recommendation]
    if not defences:
        return None
    if others := [one.name for one in given if not one.recommendation]:
        raise IneError(
            f"protect: {defences[0].name} recommends a defence, {others[0]} does not, and acts on "
            "every picture; name it in the pipeline's own negative prompt (ine.load_into_pipeline "
            "loads it), or protect with a guidance object"
        )
    overrides = Overrides(
        guidance=guidance,
        strength=strength,
        gated=gate == RECOMMENDED,
        ladder=ladder,
        can_restart=able,
    )
    found = applied(given, overrides).guidance
    if gate is None or gate == RECOMMENDED:
        return found
    if isinstance(gate, str):
        raise _no_gate(gate)
    method, part = found.split()
    # The recommended part of the run holds for a gate that names none.
    if isinstance(part, Window) and isinstance(gate, LookAhead | ProbeGate):
        gate = replace(gate, window=part) if gate.window == Window() else gate
    return Gated(method, gate)


def _guidance(
    given: Sequence[ConceptEmbedding], guidance: str | Guidance, strength: float | None
) -> Guidance:
    """Return the guidance that is given, or the one that a name, embeddings and strength make."""
    if isinstance(guidance, str):
        method = find_method(guidance)
        if strength is not None:
            if not method.has_strength:
                raise IneError(f"guidance {guidance!r} has no strength of its own; try 'additive'")
            if not (math.isfinite(strength) and strength >= 0):
                raise IneError(f"strength is {strength}; give a finite number of 0 or more")
        if not given:
            raise none_given()
        return build_guidance(guidance, Negative("", tuple(given)), None, {"strength": strength})
    if given or strength is not None:
        raise IneError(
            f"protect: a {type(guidance).__name__} brings its own negative and strength; set "
            "them there and leave embeddings and strength out"
        )
    if not isinstance(guidance, Method):
        raise IneError(
            f"protect: guidance is a {type(guidance).__name__}; give a name "
            f"({', '.join(METHODS)}) or a guidance object such as Additive(Negative(...))"
        )
    return guidance


def _restart(guidance: Guidance, pipe: DiffusionPipeline) -> tuple[Restart | None, Guidance]:
    """Return (the guidance if it restarts pictures, its first attempt without the watch)."""
    if not isinstance(guidance, Restart):
        return None, guidance
    if not isinstance(guidance.guidance.split()[1], LookAhead) or not can_restart(pipe):
        raise IneError(
            f"protect: {type(pipe).__name__} cannot restart a picture with this guidance; that "
            "takes a look-ahead and no ControlNet, and for inpainting a U-Net that reads the mask; "
            "give the method and the gate without Restart, or use `ine generate --restart`"
        )
    copied(pipe.scheduler)
    other = guidance.other_noise and begins_with_noise(pipe)
    return replace(guidance, other_noise=other), guidance.guidance


def _split(guidance: Guidance, gate: Gate | str | None) -> tuple[Guidance, Gate | None]:
    """Return (a guidance with something to steer away from, a gate or None)."""
    guidance, own_gate = guidance.split()
    if own_gate is not None:
        if gate is not None:
            raise IneError("protect: the guidance has a gate already; give one of the two")
        gate = own_gate
    if guidance.reads_prompts:
        raise rewrites_prompts(type(guidance).__name__)
    if gate is not None and (isinstance(gate, str) or not hasattr(gate, "begin")):
        raise _no_gate(gate)
    if not guidance.negative.prompt():
        raise IneError("protect: the guidance's negative is empty; give it an embedding")
    return guidance, gate


def _no_gate(gate: object) -> IneError:
    """Return the error for something given as a gate that cannot be one."""
    return IneError(
        f"protect: gate is a {type(gate).__name__}; give an object such as "
        "ine.guidance.gates.Window(0.0, 0.5), or what read_gate(FILE) returns"
    )
