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

import inspect
import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.utils import align_module_device
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from ine.embedding import ConceptEmbedding, read_embedding, tell_fits
from ine.errors import IneError, ModelError, did_you_mean
from ine.guidance.cfg import classifier_free
from ine.guidance.gates import Gated, remembering
from ine.guidance.negative import Negative
from ine.guidance.protocol import Prompts, Step, Wanted
from ine.guidance.safree import Safree
from ine.guidance.table import METHODS, build_guidance, find_method
from ine.models.parts import DiffusionParts
from ine.sampling import alpha_bar_at
from ine.text import Condition

log = logging.getLogger("ine")

KNOWN = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
"""Pipelines that batch [unconditional B; conditional B], or the conditional B alone where there is
no guidance, and loop under their progress bar."""

ARGUMENTS = tuple(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]
"""Names of what a U-Net's forward takes, in order."""


def protect(pipe, embeddings=None, guidance="cfg", gate=None, strength=None):
    """Defend a diffusers pipeline until the handle's `remove`, or within a `with` block.

    Afterwards `pipe("...")` is defended, with whatever arguments it takes; no weights change.
    A U-Net belongs to one protection: other pipelines that share it are refused while it lasts.
    Textual-inversion tokens and LoRAs loaded into the pipeline act in our negative too.

    Args:
        pipe: A Stable Diffusion pipeline, one of `KNOWN`, in any dtype, offloaded or not.
        embeddings: A `ConceptEmbedding` or the path of one, or several, joined in one string.
        guidance: A name of `ine.guidance.table.METHODS`, or a `Guidance` with a negative of
            its own; `embeddings` is then left out.
        gate: When to act, a gate of `ine.guidance.gates`; None is always.
        strength: The method's strength, where it is named and has one; 0 or more.

    Returns:
        Protection: The handle.

    Raises:
        IneError: The pipeline's class is unknown or it is protected already, nothing to steer
            away from is given, the method is unknown or rewrites prompts, or the strength makes
            no sense. Later, from the pipeline's call: guidance scale not above 1.
        EmbeddingError: An embedding cannot be read or is of another width.
    """
    _check_pipeline(pipe)
    parts = parts_of(pipe)
    method, gate = _method(embeddings, guidance, gate, strength)
    _check_negative(parts, method.negative)
    return Protection(pipe, parts, method, gate)


def parts_of(pipe):
    """Return a diffusers pipeline's pieces as a `DiffusionParts`.

    Raises:
        ModelError: Its text encoder or tokenizer was left out.
    """
    suffixes = ("", "_2") if "XL" in type(pipe).__name__ else ("",)
    tokenizers = [getattr(pipe, f"tokenizer{s}", None) for s in suffixes]
    encoders = [getattr(pipe, f"text_encoder{s}", None) for s in suffixes]
    if None in tokenizers or None in encoders:
        raise ModelError(
            f"{type(pipe).__name__}: was loaded without its tokenizer or text encoder, which the "
            "embedding needs; load the whole pipeline, pictures may still come from prompt_embeds"
        )
    return DiffusionParts(
        name=getattr(pipe, "name_or_path", None) or type(pipe).__name__,
        tokenizers=tuple(tokenizers),
        text_encoders=tuple(encoders),
        unet=pipe.unet,
        vae=pipe.vae,
        scheduler_config=dict(pipe.scheduler.config),
        zeros_for_nothing=bool(pipe.config.get("force_zeros_for_empty_prompt")),
    )


@torch.no_grad()
def encode_negative(pipe, embeddings):
    """Return (condition of the embeddings in one string, condition of no negative), a row each.

    Raises:
        IneError: None is given.
        EmbeddingError: One cannot be read or is of another width.
    """
    parts = parts_of(pipe)
    given = _read_all(embeddings)
    if not given:
        raise _none_given()
    negative = Negative("", given)
    _check_negative(parts, negative)
    prompts = _PipelinePrompts(parts=parts, texts=(), scale=1.0)
    return negative.condition(prompts), prompts.nothing()


def _check_negative(parts, negative):
    """Raise where an embedding does not fit; say where one differs or does nothing."""
    tell_fits([_comparable(embedding, parts) for embedding in negative.embeddings], parts)
    _warn_of_nothing(parts, negative)


def _none_given():
    return IneError("no embedding is given to steer away from; give embeddings=FILE, or several")


def _check_pipeline(pipe):
    names = [c.__name__ for c in type(pipe).__mro__]
    if not set(names) & set(KNOWN):
        hint = did_you_mean(names[0], KNOWN)
        raise IneError(
            f"a pipeline of class {names[0]} cannot be protected{hint}; known: {', '.join(KNOWN)}"
        )
    hooks = pipe.unet._forward_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), Protection) for hook in hooks):
        raise IneError(
            f"this {names[0]} (or one that shares its U-Net) is protected already; call "
            ".remove() on the first handle, or give all embeddings in one call"
        )
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise IneError(
            f"the scheduler's prediction type is {kind!r}; only epsilon and v_prediction are known"
        )


def _method(embeddings, guidance, gate, strength):
    """Return (a `Guidance` with something to steer away from, a gate or None)."""
    given = _read_all(embeddings)
    if isinstance(guidance, str):
        method = find_method(guidance)
        if strength is not None:
            if "strength" not in method.settings:
                raise IneError(f"guidance {guidance!r} has no strength of its own; try 'additive'")
            if not (math.isfinite(strength) and strength >= 0):
                raise IneError(f"strength is {strength}; give a finite number of 0 or more")
        if not given:
            raise _none_given()
        guidance = build_guidance(guidance, Negative("", given), None, {"strength": strength})
    elif given or strength is not None:
        raise IneError(
            f"protect: a {type(guidance).__name__} brings its own negative and strength; set "
            "them there and leave embeddings and strength out"
        )
    if isinstance(guidance, Gated):
        if gate is not None:
            raise IneError("protect: the guidance has a gate already; give one of the two")
        guidance, gate = guidance.guidance, guidance.gate
    if not hasattr(guidance, "begin") or not hasattr(guidance, "negative"):
        raise IneError(
            f"protect: guidance is a {type(guidance).__name__}; give a name "
            f"({', '.join(METHODS)}) or a guidance object such as Additive(Negative(...))"
        )
    if hasattr(guidance, "attempts"):
        raise IneError(
            "protect: the pipeline's loop cannot begin a picture anew; give the method and the "
            "gate without Rewind, or make the pictures with `ine generate --rewind`"
        )
    if isinstance(guidance, Safree) or getattr(guidance, "rewrites_prompts", False):
        raise _rewrites(type(guidance).__name__)
    if gate is not None and not hasattr(gate, "begin"):
        raise IneError(
            f"protect: gate is a {type(gate).__name__}; give an object such as "
            "ine.guidance.gates.Presence(threshold=0.5)"
        )
    if not guidance.negative.prompt():
        raise IneError("protect: the guidance's negative is empty; give it an embedding")
    return guidance, gate


def _read_all(embeddings):
    if embeddings is None:
        return ()
    several = not isinstance(embeddings, str | Path | ConceptEmbedding)
    return tuple(
        e if isinstance(e, ConceptEmbedding) else read_embedding(e)
        for e in (embeddings if several else (embeddings,))
    )


def _rewrites(who):
    return IneError(
        f"{who} rewrites the prompts, and protect never sees them (the pipeline may have been "
        "given prompt_embeds); use it with `ine generate`, or protect with another guidance"
    )


def _comparable(embedding, parts):
    """Return the embedding, without fingerprints where offloading hides the weights."""
    modules = (parts.unet, *parts.text_encoders)
    if not any(p.is_meta for m in modules for p in m.parameters()):
        return embedding
    told = {k: v for k, v in embedding.metadata.items() if not k.endswith("_fingerprint")}
    return replace(embedding, metadata=told)


@torch.no_grad()
def _warn_of_nothing(parts, negative):
    prompts = _PipelinePrompts(parts=parts, texts=(), scale=1.0)
    empty = prompts.encode([""])
    for one in negative.candidates():
        if _same(one.condition(prompts), empty):
            log.warning(
                "negative %r equals the empty prompt for %s: it will steer nothing",
                one.name,
                parts.name,
            )


def _same(one, other):
    """Return whether two conditions say the same up to rounding; rows may be broadcast."""
    if one.states.shape[1:] != other.states.shape[1:]:
        return False
    first, second = one.states.float(), other.states.to(one.states.device).float()
    # A single other word changes some tenths; half precision and batch shape some thousandths.
    return bool((first - second).norm() <= 1e-2 * first.norm())


class Protection:
    """A protected pipeline; `protect` makes it."""

    def __init__(self, pipe, parts, method, gate):
        self._pipe, self._parts, self._method, self._gate = pipe, parts, method, gate
        self._unet = pipe.unet
        self._run = None
        self._seen = False
        self._notes, self._calls = [], []
        self._install()

    @property
    def notes(self):
        """What method and gate logged in the pipeline's last call, one dict per picture."""
        return self._notes

    @property
    def unet_calls(self):
        """UNet evaluations of the last call, (condition, step) pairs, one number per picture."""
        return self._calls

    def __enter__(self):
        """Return the handle itself; the protection holds already."""
        return self

    def __exit__(self, *_error):
        """Give the pipeline back."""
        self.remove()

    def _install(self):
        # Below accelerate's hooks: diffusers takes those off and on again after every call.
        self._place = "_old_forward" if "_old_forward" in self._unet.__dict__ else "forward"
        self._own = self._place in self._unet.__dict__
        self._forward = getattr(self._unet, self._place)
        setattr(self._unet, self._place, self._answer)
        self._guard = self._unet.register_forward_hook(self._check_answered)
        self._bar = self._pipe.__dict__.get("progress_bar")
        self._loop = self._pipe.progress_bar
        self._pipe.__dict__["progress_bar"] = self._bracket

    def remove(self):
        """Give the pipeline back as it was; once is enough, twice does no harm."""
        if self._guard is None:
            return
        self._guard.remove()
        self._guard = None
        for place in ("_old_forward", "forward"):
            if self._unet.__dict__.get(place) == self._answer:
                if place == "forward" and not self._own:
                    del self._unet.__dict__[place]
                else:
                    setattr(self._unet, place, self._forward)
        if self._pipe.__dict__.get("progress_bar") == self._bracket:
            del self._pipe.__dict__["progress_bar"]
            if self._bar is not None:
                self._pipe.__dict__["progress_bar"] = self._bar

    @contextmanager
    def _bracket(self, *args, **kwargs):
        """Stand for `pipe.progress_bar`: all known pipelines denoise within it and it alone.

        So a run has a beginning and, exceptions included, an end, and state is new every call.
        """
        if self._pipe.unet is not self._unet:
            raise IneError(
                "the pipeline's U-Net was replaced after protect; call .remove(), then protect"
            )
        self._run = run = _Run(self._pipe, self._parts, self._method, self._gate)
        try:
            with self._loop(*args, **kwargs) as bar, run.stack:
                yield bar
            self._notes, self._calls = run.notes(), run.asked
        finally:
            self._run = None

    def _answer(self, *args, **kwargs):
        """Stand for the U-Net's forward."""
        if self._guard is None:  # removed, but kept alive by a wrapper that came later
            return self._forward(*args, **kwargs)
        if self._run is None:
            raise IneError(
                "the protected U-Net was called outside its pipeline's own loop; if another "
                "pipeline shares it, protect that one instead, or call .remove() first"
            )
        given = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
        whole = given.pop("return_dict", True)
        output = self._run.predict(self._forward, given)
        self._seen = True
        return UNet2DConditionOutput(sample=output) if whole else (output,)

    def _check_answered(self, *_):
        """Raise rather than let undefended pictures through."""
        seen, self._seen = self._seen, False
        if not seen:
            raise IneError(
                "something took the protection off the U-Net's forward (offloading or a cache "
                "that was switched after protect?); call .remove(), then protect as the last step"
            )


@dataclass(frozen=True)
class _Call:
    """What the pipeline asks of its U-Net: 2B rows, the unconditional ones first; or B rows."""

    forward: object
    given: dict
    """Arguments by name, without `return_dict`."""

    halves: int = 2
    """2, or 1 without guidance."""

    @property
    def sample(self):
        return self.given["sample"]

    @property
    def states(self):
        return self.given["encoder_hidden_states"]

    @property
    def count(self):
        return len(self.sample) // self.halves

    def row(self, half, picture):
        """Return the number of a row; `half` is 0 unconditional, 1 conditional."""
        return half * self.count + picture if self.halves == 2 else picture

    def condition(self, half):
        """Return the condition of one half, 0 unconditional, 1 conditional; B rows."""
        first = self.row(half, 0)
        rows = slice(first, first + self.count)
        pooled = (self.given.get("added_cond_kwargs") or {}).get("text_embeds")
        return Condition(states=self.states[rows], pooled=None if pooled is None else pooled[rows])

    def own(self):
        """Return the outputs that the pipeline would have got, (2B or B, C, H, W)."""
        return self.forward(**self.given, return_dict=False)[0]

    def ask(self, rows, conditions):
        """Return the outputs for conditions that take the place of some rows' own.

        Whatever else the pipeline passes per row goes with it: a ControlNet's residuals, an
        inpainting U-Net's mask, IP-Adapter and SDXL's size numbers.

        Args:
            rows: K row numbers of the call.
            conditions: Conditions of K rows in all.
        """
        given = pick_rows(self.given, rows, len(self.sample))
        states = [c.states.to(self.states.device, self.states.dtype) for c in conditions]
        given["encoder_hidden_states"] = torch.cat(states)
        if (given.get("added_cond_kwargs") or {}).get("text_embeds") is not None:
            own = given["added_cond_kwargs"]["text_embeds"]
            pooled = torch.cat([c.pooled.to(own.device, own.dtype) for c in conditions])
            given["added_cond_kwargs"]["text_embeds"] = pooled
        return self.forward(**given, return_dict=False)[0]


def pick_rows(value, rows, total):
    """Return a value with every tensor of `total` rows in it reduced to some of them."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() and len(value) == total else value
    if isinstance(value, Mapping):
        return {k: pick_rows(v, rows, total) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(pick_rows(v, rows, total) for v in value)
    return value


class _Unseen:
    """A prompt that protect does not know; a guidance that looks at it says so."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise _rewrites("this guidance")

    def __str__(self):
        raise _rewrites("this guidance")

    def __len__(self):
        raise _rewrites("this guidance")


@dataclass(frozen=True, kw_only=True)
class _PipelinePrompts(Prompts):
    """A batch as the pipeline has encoded it itself."""

    own_positive: Condition | None = None
    own_empty: Condition | None = None

    def encode(self, texts, vectors=None):
        """Return the condition of texts by the pipeline's own encoders, wherever they are."""
        if any(isinstance(text, _Unseen) for text in texts):
            raise _rewrites("this guidance")
        with ExitStack() as stack:
            for encoder in self.parts.text_encoders:
                # Offloaded layer by layer, a table has no values between two calls.
                stack.enter_context(align_module_device(encoder.get_input_embeddings()))
            return super().encode(texts, vectors)

    def positive(self):
        """Return what the pipeline passed for the prompts, B rows."""
        return self.own_positive

    def empty(self):
        """Return the condition of no negative at all, B rows."""
        return self.own_empty


class _Run:
    """One call of the pipeline, from its first step to its last."""

    def __init__(self, pipe, parts, method, gate):
        self.pipe, self.parts, self.method, self.gating = pipe, parts, method, gate
        self.guided = bool(pipe.do_classifier_free_guidance)
        self.stack = ExitStack()
        self.session = self.gate = None
        self.index = 0
        self.asked = []

    def notes(self):
        """Return the notes of method and gate, one dict per picture."""
        if self.session is None:
            return []
        notes = self.session.notes()
        if self.gate is None:
            return notes
        return [{**n, **g} for n, g in zip(notes, self.gate.notes(), strict=True)]

    def begin(self, call, scale):
        """Prepare the method once the pipeline's own states are known."""
        self.scale = scale
        self.asked = [0] * call.count
        prompts = _PipelinePrompts(
            parts=self.parts,
            texts=tuple(_Unseen() for _ in range(call.count)),
            scale=scale,
            own_positive=call.condition(1),
        )
        self._find_empty(prompts, call)
        prompts = replace(prompts, own_empty=self.empty)
        self.session = self.stack.enter_context(self.method.begin(prompts))
        if self.gating is not None:
            self.gate = self.gating.begin(prompts, self.method.negative.candidates())

    def _find_empty(self, prompts, call):
        """Tell no negative from one of the user's own."""
        nothing = prompts.nothing()
        self.own_negative = False
        if not self.guided:
            self.empty = nothing.repeat(call.count)
            return
        own = call.condition(0)
        if prompts.parts.zeros_for_nothing and own.states.any():
            # SDXL writes zeros for no negative, and encodes the empty text where one is given.
            empty = prompts.encode([""])
            nothing = empty if _same(own, empty) else nothing
        self.own_negative = not _same(own, nothing)
        self.empty = nothing.repeat(call.count) if self.own_negative else own

    def predict(self, forward, given):
        """Return what makes the pipeline's prediction the method's, (2B or B, C, H, W)."""
        call = _Call(forward, given, 2 if self.guided else 1)
        scale = float(self.pipe.guidance_scale) if self.guided else 1.0
        if bool(self.pipe.do_classifier_free_guidance) != self.guided or (
            len(call.sample) != call.halves * call.count
        ):
            raise IneError(
                f"at step {self.index} guidance_scale is {self.pipe.guidance_scale} and guidance "
                f"is {'off' if self.guided else 'on'}, which it was not when the run began: the "
                "rest would be undefended; keep it on one side of 1"
            )
        if self.session is None:
            self.begin(call, scale)
        if call.count != len(self.asked):
            raise IneError(
                f"the batch changed from {len(self.asked)} to {call.count} pictures within a run"
            )
        step = self._step(call)
        self.index += 1
        own, known = None, {}
        if self.gate is not None or self.own_negative:
            # The very call of the undefended pipeline: closed pictures keep it bit by bit.
            own = call.own()
            self.asked = [n + call.halves for n in self.asked]
            known = {"positive": own.chunk(call.halves)[-1]}
            if self.guided and not self.own_negative:
                known["empty"] = own.chunk(2)[0]
        ask = remembering(lambda wanted: self._ask(call, known, wanted), call.count)
        if self.gate is None:
            opened = tuple(range(call.count))
        else:
            conditions = {"empty": self.empty, "positive": call.condition(1)}
            opened = tuple(self.gate.open(step, ask, _Plain(ask, conditions)))
        if not opened:
            return own
        pictures = None if len(opened) == call.count else opened
        guided = self.session.predict(step, ask, pictures).float()
        if not self.guided:
            return _placed(guided, own, opened, call.sample.dtype)
        positive = self._output(ask, "positive", call.condition(1), pictures).float()
        if self.own_negative or scale != self.scale:
            empty = self._output(ask, "empty", self.empty, pictures).float()
            user = own[list(opened)].float() if self.own_negative else empty
            theirs = classifier_free(user, positive, scale)
            guided = guided + theirs - classifier_free(empty, positive, self.scale)
        answer = (guided - scale * positive) / (1 - scale)
        if own is None:
            return torch.cat([answer, positive]).to(call.sample.dtype)
        return _placed(answer, own, opened, own.dtype)

    @staticmethod
    def _output(ask, name, condition, pictures):
        return ask([Wanted.of(name, condition, pictures)])[name]

    def _ask(self, call, known, wanted):
        """Answer what the pipeline's own call has told, and ask the U-Net about the rest."""
        out, lengths = {}, {}
        for wish in wanted:
            pictures = range(call.count) if wish.pictures is None else wish.pictures
            if wish.name in known:
                out[wish.name] = known[wish.name][list(pictures)]
                continue
            half = int(wish.name.startswith("positive"))
            rows = [call.row(half, i) for i in pictures]
            condition = wish.condition.repeat(len(rows))
            if wish.name == "positive" or (
                wish.name == "empty" and self.guided and not self.own_negative
            ):
                # As of now: a callback may have changed them since the run began.
                condition = call.condition(half).rows(list(pictures))
            for i in pictures:
                self.asked[i] += 1
            # Weighted and overlong prompts come with contexts of other lengths than ours.
            length = condition.states.shape[1]
            lengths.setdefault(length, []).append((wish.name, rows, condition))
        for group in lengths.values():
            names, rows, conditions = zip(*group, strict=True)
            outputs = call.ask([i for some in rows for i in some], conditions)
            out.update(zip(names, outputs.split([len(some) for some in rows]), strict=True))
        return out

    def _step(self, call):
        t = torch.as_tensor(call.given["timestep"]).flatten()[0]
        x_t = call.sample[: call.count, : self.parts.unet.config.out_channels]
        return Step(
            index=self.index,
            # As far as it is known: a pipeline may skip steps, never take more.
            count=max(self.pipe.num_timesteps, self.index + 1),
            t=t,
            x_t=x_t,
            alpha_bar=signal_power(self.pipe.scheduler, t).to(x_t.device, torch.float32),
            prediction_type=self.pipe.scheduler.config.get("prediction_type", "epsilon"),
        )


def _placed(rows, own, opened, dtype):
    """Return the pipeline's own outputs with the rows of opened pictures replaced."""
    if own is None:
        return rows.to(dtype)
    own = own.clone()
    own[list(opened)] = rows.to(own.dtype)
    return own


class _Plain(dict):
    """The undefended outputs by name, each asked about when it is first looked at."""

    def __init__(self, ask, conditions):
        super().__init__()
        self._ask, self._conditions = ask, conditions

    def __missing__(self, name):
        self[name] = self._ask([Wanted(name, self._conditions[name])])[name]
        return self[name]


def signal_power(scheduler, t):
    """Return alpha-bar of what the U-Net sees at timestep t, a scalar in (0, 1].

    Schedulers that scale the U-Net's input make it variance-preserving, so that the training
    schedule's value at t holds for all of them; between two timesteps it is interpolated.
    """
    if hasattr(scheduler, "sigmas") and type(scheduler).__name__.startswith("Euler"):
        place = (scheduler.timesteps.cpu() == t.cpu()).nonzero()
        if len(place):
            return alpha_bar_at(scheduler, int(place[0]), t)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise IneError(
            f"scheduler {type(scheduler).__name__} tells no noise levels (alphas_cumprod); use "
            "another one, for example DPMSolverMultistepScheduler"
        )
    place = float(t)
    low = min(max(int(place), 0), len(table) - 1)
    high = min(low + 1, len(table) - 1)
    return torch.lerp(table[low], table[high], place - int(place))
