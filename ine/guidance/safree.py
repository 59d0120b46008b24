"""SAFREE: take an unsafe subspace out of the prompt's text states, at the early steps.

Yoon et al. 2024 (arXiv 2410.12761), sections 3.2 and 3.3, where paper and released code differ
after the code (commit b8b2c3f). With C (D, K) the pooled states of the concept, p_i the pooled
state of the prompt with token i masked, I (D, n) = [p_1 ... p_n], c_i the text state of token i:

    P_C = C (C^T C)^+ C^T,   P_I likewise
    d_i = ||(I - P_C) p_i||
    token i is a trigger     if d_i >= (1 + alpha) mean of d_j over j != i
    its state becomes        (I - P_C) P_I c_i;  other states stay
    beta = 1 - mean cos((I - P_C) P_I c_i, c_i)  over start, all tokens (triggers or not) and end
    last = round(up_t sigmoid(2 k (10 beta - t)))
    steps 0 .. last use the new states, later ones the prompt's own

A pooled state is the state at the end of the text, of the layer that the U-Net reads: the last
with its norm for models of one encoder, which is what `CLIPTextModel` calls its pooler output; for
SDXL the layer before the last of both encoders, side by side, as its text states are. SDXL's own
pooled embedding stays the prompt's. The rest is classifier-free guidance.

What is ours: state per picture, so a batch equals its pictures; embeddings as the subspace; the
concept's subspace and the CFG negative slot are two fields, where the released code puts its
phrases in both; a prompt of one token, an empty one and one that is too long are defined (see
`find_triggers` and `rewrite`); a picture without a trigger makes exactly plain guidance's call.

Shape letters: B pictures, L tokens of the context, D text width, n tokens of a prompt, K columns.
"""

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch

from ine.embedding import ConceptEmbedding
from ine.errors import EmbeddingError, IneError, did_you_mean
from ine.guidance.cfg import classifier_free
from ine.guidance.negative import Matched, Negative
from ine.guidance.protocol import Wanted
from ine.guidance.reattention import Reattention, reattending
from ine.text import Condition, encode, layer_states, splice, tokenize
from ine.weights_in_prompts import is_weighted

COLUMNS = ("pooled", "vectors")
"""What an embedding puts into C: one column, the pooled state of its whole string of vectors, or
one column per vector, the pooled state of a text of that vector alone."""

MASK = 0
"""Id that a masked token becomes. 0, as in SAFREE: the vocabulary of every CLIP tokenizer begins
with the bytes in order, so it is "!", a word that says next to nothing."""


# --- formulas -----------------------------------------------------------------------------------


def projector(columns, rtol=None):
    """Return the orthogonal projector on the span of columns, C (C^T C)^+ C^T, (D, D) float64.

    Args:
        columns: C, (D, K); K may be 0.
        rtol: Directions whose singular value is at most this share of the largest are rounding,
            not content; by default 10 times the precision of the columns' dtype, so that a
            phrase given twice counts once.
    """
    rtol = 10 * torch.finfo(columns.dtype).eps if rtol is None else rtol
    # The singular vectors rather than the inverse of C^T C, whose condition is squared.
    left, sizes, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    basis = left[:, sizes > rtol * sizes.max()] if len(sizes) else left
    return basis @ basis.T


def distances(pooled, concept):
    """Return how far pooled states are from the concept, ||(I - P_C) p_i||, (n,) float64.

    Args:
        pooled: (n, D).
        concept: P_C, (D, D).
    """
    pooled = pooled.to(concept)
    return (pooled - pooled @ concept).norm(dim=1)


def find_triggers(far, whole, alpha):
    """Return (which tokens are triggers (n,) bool, d_i / mean of the others (n,) float64).

    A prompt of one token has no others. Its masked prompt is then compared with the prompt
    itself: a trigger is a token without which the prompt is further from the concept. On the
    bundled model with the words of `fire` this ratio is 4.7 for "fire" and 5.6 for "flames",
    below 1 for "dog" and "candle", 1.9 for "car".

    Args:
        far: d of the masked prompts, (n,); n may be 0.
        whole: d of the prompt itself, a scalar; looked at when n is 1.
        alpha: How much further than the mean a trigger is, as a share of the mean.
    """
    count = len(far)
    others = (far.sum() - far) / (count - 1) if count > 1 else whole.expand(count).to(far)
    return far >= (1 + alpha) * others, far / others.clamp_min(torch.finfo(far.dtype).tiny)


def project(states, concept, prompt):
    """Return (I - P_C) P_I c_i for states c_i, (..., D) in the dtype of `states`.

    Args:
        states: (..., D).
        concept: P_C, (D, D) float64.
        prompt: P_I, (D, D) float64.
    """
    within = states.to(prompt) @ prompt
    return (within - within @ concept).to(states.dtype)


def change(states, projected):
    """Return beta = 1 - mean cosine of states with what they became, both (n, D); in [0, 2]."""
    cosines = torch.nn.functional.cosine_similarity(states.double(), projected.double(), dim=-1)
    return 1 - cosines.mean().item() if len(cosines) else 0.0


def last_step(beta, k, t, up_t):
    """Return round(up_t sigmoid(2 k (10 beta - t))), the last step that uses the new states."""
    # As tanh the logistic function cannot overflow.
    return round(up_t * (0.5 + 0.5 * math.tanh(k * (10 * beta - t))))


# --- pooled states ------------------------------------------------------------------------------


def closing(tokenizer, ids):
    """Return the position of the end-of-text token that closes a prompt.

    Not the first one: a prompt may spell "<|endoftext|>", and what stands behind that is read by
    cross-attention all the same.

    Args:
        tokenizer: Its end and padding ids count.
        ids: L numbers, a row of what `ine.text.tokenize` returns.
    """
    last = len(ids) - 1
    while last and ids[last] == tokenizer.pad_token_id:
        last -= 1
    # Where the padding is the end-of-text token itself, the walk went over the closing one.
    return last + 1 if tokenizer.pad_token_id == tokenizer.eos_token_id else last


@torch.no_grad()
def pooled_states(parts, text, vectors=None, masked=False):
    """Return the pooled state of a text, and of the text with each token masked in turn.

    Args:
        parts: A `DiffusionParts`.
        text: Cut where it is too long, as everywhere.
        vectors: {trigger: (N, D) tensor, or one for each text encoder}; a masked place gets the
            mask's token instead of its vector.
        masked: Whether to mask.

    Returns:
        (states (1 + n, D), or (1, D) when not masked, the text itself first; ids (n,) int64).

    Raises:
        IneError: Two text encoders cut the text into different tokens.
    """
    given = {t: v if isinstance(v, tuple | list) else (v,) for t, v in (vectors or {}).items()}
    counts = {t: len(v[0]) for t, v in given.items()}
    found, read = [], []
    for number, (tokenizer, encoder) in enumerate(
        zip(parts.tokenizers, parts.text_encoders, strict=True)
    ):
        tokens = tokenize(tokenizer, [text], counts)
        end = closing(tokenizer, tokens.ids[0].tolist())
        # The encoder is causal: what follows the end does not reach it, so it is not computed.
        ids = tokens.ids[:, : end + 1].repeat(end if masked else 1, 1)
        hidden = range(1, len(ids))
        ids[list(hidden), list(hidden)] = MASK
        device = encoder.get_input_embeddings().weight.device
        rows = range(len(ids))
        places = [(r, at, t, k) for r in rows for _, at, t, k in tokens.places if at != r]
        values = [given[t][number][k].to(device) for *_, t, k in places]
        values = torch.stack(values) if places else None
        with splice(encoder, [p[0] for p in places], [p[1] for p in places], values):
            states, _ = layer_states(encoder, ids, alone=len(parts.text_encoders) == 1)
        found.append(states[:, end])
        read.append(tokens.ids[0, 1:end])
    if any(ids.tolist() != read[0].tolist() for ids in read):
        raise IneError(
            f"SAFREE: the text encoders of {parts.name} cut {text[:60]!r} into other tokens, so "
            "none can be told from the other's; use cfg, additive or sld with this model"
        )
    return torch.cat(found, dim=-1), read[0]


def concept_columns(parts, phrases=(), embeddings=(), columns="pooled"):
    """Return C, (D, K), phrases first.

    Args:
        parts: A `DiffusionParts`.
        phrases: Texts, one column each.
        embeddings: `ConceptEmbedding`s.
        columns: A name of `COLUMNS`.

    Raises:
        EmbeddingError: An embedding has another width than the model.
    """
    texts = [(p, None) for p in phrases]
    widths = [e.get_input_embeddings().weight.shape[1] for e in parts.text_encoders]
    for embedding in embeddings:
        if [v.shape[1] for v in embedding.vectors] != widths:
            raise EmbeddingError(
                f"embedding {embedding.trigger!r} has width {embedding.width}, the model "
                f"{parts.name} {sum(widths)}; give one that was found on this kind of model"
            )
        chunks = [embedding.vectors]
        if columns == "vectors":
            chunks = zip(*(v.split(1) for v in embedding.vectors), strict=True)
        texts += [(embedding.trigger, {embedding.trigger: chunk}) for chunk in chunks]
    return torch.cat([pooled_states(parts, text, given)[0] for text, given in texts]).T


# --- one prompt ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Rewrite:
    """What SAFREE makes of one prompt."""

    triggers: tuple[int, ...]
    """Positions of the trigger tokens in the context; the start-of-text token is 0."""

    ratios: tuple[float, ...]
    """d_i / mean of the others for every token, n numbers."""

    beta: float
    """How much the projection of all tokens would change the prompt, in [0, 2]."""

    states: torch.Tensor
    """The text states with those of the triggers projected, (L, D)."""

    words: tuple[str, ...] = ()
    """The trigger tokens, for logs."""


def rewrite(parts, text, states, concept, alpha, vectors=None):
    """Return the `Rewrite` of one prompt.

    An empty prompt has no token that could be a trigger: beta is 0, states as given. Of one that
    is too long, the tokens that the model reads are looked at, as in the paper.

    Args:
        parts: A `DiffusionParts`.
        text: The prompt.
        states: Its text states, (L, D).
        concept: P_C, (D, D) float64.
        alpha: See `find_triggers`.
        vectors: {trigger: vectors} where the prompt has learned vectors in it; its `states` were
            then made with them.
    """
    pooled, ids = pooled_states(parts, text, vectors, masked=True)
    if not len(ids):
        return Rewrite(triggers=(), ratios=(), beta=0.0, states=states)
    far = distances(pooled, concept)
    found, ratios = find_triggers(far[1:], far[0], alpha)
    projected = project(states, concept, projector(pooled[1:].T))
    seen = slice(0, len(ids) + 2)
    places = (found.nonzero().flatten() + 1).tolist()
    new = states.clone()
    new[places] = projected[places]
    return Rewrite(
        triggers=tuple(places),
        ratios=tuple(ratios.tolist()),
        beta=change(states[seen], projected[seen]),
        states=new,
        words=tuple(parts.tokenizers[0].decode([int(ids[p - 1])]).strip() for p in places),
    )


def rewrite_all(parts, texts, states, concept, alpha, vectors=None):
    """Return the `Rewrite` of every prompt; the same prompt is looked at once.

    One encoder call per prompt, so that what is found does not depend on its neighbours.
    """
    known: dict[str, Rewrite] = {}
    for text, rows in zip(texts, states, strict=True):
        if text not in known:
            known[text] = rewrite(parts, text, rows, concept, alpha, vectors)
    return [known[text] for text in texts]


# --- the method ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Safree:
    """SAFREE's settings; the constants are those that its authors fitted for nudity."""

    negative: Negative | Matched = field(default_factory=Negative)
    """What stands in the CFG negative slot; nothing by default. The released code has the phrases
    here as well: see `safree_against`."""

    phrases: tuple[str, ...] = ()
    """Texts that span the concept."""

    embeddings: tuple[ConceptEmbedding, ...] = ()
    """Embeddings that span the concept, beside the phrases."""

    columns: str = "pooled"
    """A name of `COLUMNS`."""

    alpha: float = 0.01
    """Tolerance of the trigger test, >= 0."""

    k: float = 2.5
    """Slope of the filter, > 0; the authors' value for artists is 3.5."""

    t: float = 5.333
    """Midpoint of the filter in units of 10 beta; artists 5.5. See `calibrate_filter`."""

    up_t: int = 10
    """The largest number the filter returns, in steps; the authors' runs have 50."""

    validate: bool = True
    """Whether the filter is used; without it trigger tokens stay projected at all steps."""

    reattention: Reattention | None = None
    """Latent re-attention; three U-Net rows instead of two where the new states are used."""

    def __post_init__(self):
        """Raise `IneError` where there is nothing to project away or a number makes no sense."""
        if isinstance(self.phrases, str):
            raise IneError("SAFREE: phrases is one text; give a list of phrases")
        object.__setattr__(self, "phrases", tuple(self.phrases))
        object.__setattr__(self, "embeddings", tuple(self.embeddings))
        if self.reattention in (True, False):
            object.__setattr__(self, "reattention", Reattention() if self.reattention else None)
        if not any(p.strip() for p in self.phrases) and not self.embeddings:
            raise IneError(
                "SAFREE: nothing says what to remove from the prompt; give phrases or an embedding"
            )
        if self.columns not in COLUMNS:
            hint = did_you_mean(self.columns, COLUMNS)
            raise IneError(
                f"SAFREE: columns {self.columns!r} is unknown{hint}; known: {', '.join(COLUMNS)}"
            )
        for name, fine, wanted in (
            ("alpha", self.alpha >= 0, "0 or more"),
            ("k", self.k > 0, "more than 0"),
            ("t", True, "a number"),
            ("up_t", self.up_t >= 0, "0 or more steps"),
        ):
            value = getattr(self, name)
            if not (fine and math.isfinite(value)):
                raise IneError(f"SAFREE: {name} is {value:g}; give {wanted}")

    def concept(self, parts):
        """Return P_C of a model, (D, D) float64.

        Raises:
            IneError: The concept spans the model's whole width.
        """
        phrases = [p for p in self.phrases if p.strip()]
        found = projector(concept_columns(parts, phrases, self.embeddings, self.columns))
        rank = round(float(found.trace()))
        if rank == len(found):
            raise IneError(
                f"SAFREE: {rank} phrases and vectors span the whole text width of {parts.name}, "
                "so nothing would be left of a prompt; give fewer"
            )
        return found

    def _check_reading(self, prompts):
        """Refuse what would part the pooled states from the states that are projected."""
        reading = prompts.reading
        if reading.clip_skip != 1:
            raise IneError(
                f"SAFREE: clip skip is {reading.clip_skip}; it is defined on the last layer of the "
                "text encoder; leave it out, or use cfg, additive or sld"
            )
        texts = [*prompts.texts, self.negative.prompt(), *self.phrases]
        weighted = [t for t in texts if reading.weights and is_weighted(t)]
        if weighted:
            raise IneError(
                f"SAFREE: {weighted[0][:60]!r} has weights, which it knows nothing about; leave "
                "them out (a bracket that is meant as one is written \\( or \\[), or use cfg, "
                "additive or sld"
            )

    def last(self, rewritten, count):
        """Return the last step that uses a rewrite, of a run of `count`; -1 for none."""
        if not rewritten.triggers:
            return -1
        if not self.validate:
            return count - 1
        return last_step(rewritten.beta, self.k, self.t, self.up_t)

    @contextmanager
    def begin(self, prompts):
        """Encode prompts and negative, and rewrite the prompts, once.

        Raises:
            IneError: A prompt or the negative has weights, or a layer is skipped.
        """
        self._check_reading(prompts)
        positive = prompts.positive()
        with torch.no_grad():
            concept = self.concept(prompts.parts)
        # Gradients reach learned words in the prompts through their states; which tokens are
        # triggers, and what is projected off, is as if it were constant.
        rewrites = rewrite_all(
            *(prompts.parts, prompts.words(), positive.states, concept, self.alpha),
            vectors=prompts.vectors,
        )
        yield _Session(
            guidance=self,
            unet=prompts.parts.unet,
            positive=positive,
            rewritten=replace(positive, states=torch.stack([r.states for r in rewrites])),
            rewrites=rewrites,
            empty=prompts.empty() if len(self.negative.candidates()) > 1 else None,
            slot=self.negative.begin(prompts),
            scale=prompts.scale,
        )


def safree_against(negative, slot=True, **settings):
    """Return a `Safree` whose subspace is what a negative holds.

    Args:
        negative: A `Negative` or `Matched`; its text is cut into phrases at commas.
        slot: Whether it stands in the CFG negative slot too, as in the released code.
        settings: Other fields of `Safree`.
    """
    texts = [n.text for n in negative.candidates()]
    known = [e.trigger.lower() for e in negative.embeddings]
    phrases = [p.strip() for text in texts for p in text.split(",")]
    phrases = [p for p in dict.fromkeys(phrases) if p and p.lower() not in known]
    return Safree(
        negative=negative if slot else Negative(),
        phrases=tuple(phrases),
        embeddings=tuple(negative.embeddings),
        **settings,
    )


@dataclass(frozen=True, kw_only=True)
class _Session:
    guidance: Safree
    unet: object
    positive: Condition
    rewritten: Condition
    rewrites: list
    empty: Condition | None
    slot: object
    scale: float

    def predict(self, step, ask, pictures=None):
        rows = tuple(range(len(self.rewrites))) if pictures is None else tuple(pictures)
        last = {i: self.guidance.last(self.rewrites[i], step.count) for i in rows}
        new = tuple(i for i in rows if step.index <= last[i])
        matches = self.slot.needs_empty(step)
        # Which negative fits is read off the prompt as it was: the concept is still in there.
        own = rows if matches else tuple(i for i in rows if i not in new)
        wanted = self.slot.wanted(step, pictures)
        if own:
            wanted.append(Wanted.of("positive", self.positive, self._whole(own)))
        if matches:
            wanted.append(Wanted.of("empty", self.empty, pictures))
        filtering = nullcontext()
        if new:
            wanted.append(Wanted.of("positive-safree", self.rewritten, self._whole(new)))
            if self.guidance.reattention:
                # A name of its own: behind a gate, "positive" is remembered and not asked again,
                # but the features are compared within one call. Both have to come last in it.
                beside = Wanted.of("positive-beside", self.positive, self._whole(new))
                wanted.append(beside)
                filtering = reattending(self.unet, self.guidance.reattention, len(new))
        with filtering:
            out = ask(wanted)
        negative = self.slot.settle(step, pictures, out)
        if not new:
            return classifier_free(negative, out["positive"], self.scale)
        used = dict(zip(own, out.get("positive", ()), strict=True))
        used.update(zip(new, out["positive-safree"], strict=True))
        positive = torch.stack([used[i] for i in rows])
        return classifier_free(negative, positive, self.scale)

    def _whole(self, pictures):
        return None if pictures == tuple(range(len(self.rewrites))) else pictures

    def notes(self):
        g = self.guidance
        return [
            {
                **note,
                "safree": {
                    "triggers": list(r.words),
                    "beta": round(r.beta, 4),
                    "last": g.last(r, 0) if g.validate or not r.triggers else None,
                },
            }
            for note, r in zip(self.slot.notes(), self.rewrites, strict=True)
        ]


# --- calibration --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Constants that leave most benign prompts of one model and concept alone."""

    alpha: float
    k: float
    t: float
    by: str
    """Which of the two tests was fitted."""

    share: float
    """The share of benign prompts to leave alone that was asked for, in (0, 1)."""

    prompts: int
    """N, the different benign prompts that were measured."""

    left: float
    """The share of those without a trigger, or whose last projected step is at most `allowed`."""

    allowed: int
    concept_prompts: int = 0
    caught: float | None = None
    """The share of the concept prompts that is not left alone; None where none were given."""

    def of(self, guidance):
        """Return a `Safree` with these constants."""
        return replace(guidance, alpha=self.alpha, k=self.k, t=self.t)


FITTED = ("triggers", "filter")
"""What `calibrate_filter` can fit."""


@torch.no_grad()
def calibrate_filter(
    parts, prompts, guidance, share=0.95, allowed=0, by="triggers", concept_prompts=()
):
    """Return `FilterSettings` for a concept and a text encoder, fitted to benign prompts.

    - "triggers" fits the trigger test: alpha is the `share` quantile, over prompts, of the
      largest d_i / mean of the others, less 1, so that the rest of the prompts has no trigger.
      k stays, and t lets the benign prompt of least beta have up_t, so the filter is open.
    - "filter" fits the self-validating filter: t gives the prompt at the `share` quantile of
      beta just `allowed`, and k lets the filter rise to up_t - `allowed` within as much of beta
      as lies between the median and that quantile. alpha stays.

    The authors put the filter's midpoint between two means, which presumes that beta tells the
    concept apart. It need not: a projection on the span of few masked prompts changes short
    prompts most. `caught` says which of the two is of use for a concept.

    Args:
        parts: A `DiffusionParts`.
        prompts: Benign prompts; each counts once, empty ones do not count.
        guidance: A `Safree` with the concept, and the up_t that will be used.
        share: Share of benign prompts to leave alone, in (0, 1).
        allowed: Last step that counts as left alone, in [0, up_t / 2); 0 is one step of the run.
        by: A name of `FITTED`.
        concept_prompts: Prompts for the concept. Nothing is fitted to them; they are counted.

    Raises:
        IneError: A setting is out of range, or no prompt is left.
    """
    if by not in FITTED:
        raise IneError(
            f"SAFREE calibration: by {by!r} is unknown{did_you_mean(by, FITTED)}; "
            f"known: {', '.join(FITTED)}"
        )
    if not (0 < share < 1 and 0 <= 2 * allowed < guidance.up_t):
        raise IneError(
            f"SAFREE calibration: share {share:g}, allowed {allowed}; give a share between 0 and "
            f"1 and fewer allowed steps than half of up_t ({guidance.up_t})"
        )
    concept = guidance.concept(parts)
    benign = _measured(parts, prompts, concept)
    if not benign:
        raise IneError("SAFREE calibration: no prompts are given; give benign prompts")
    # Just short of the half at which it rounds up to the next step; atanh inverts `last_step`.
    rise = math.atanh(1 - 2 * (allowed + 0.499) / guidance.up_t)
    betas = torch.tensor([r.beta for r in benign], dtype=torch.float64)
    largest = torch.tensor([max(r.ratios) for r in benign], dtype=torch.float64)
    if by == "triggers":
        top = float(largest.quantile(share, interpolation="higher"))
        # The test is >=, so a little more than the prompt at the quantile has.
        alpha, k = max(0.0, top - 1) * (1 + 1e-6) + 1e-9, guidance.k
        t = 10 * float(betas.min()) - math.atanh(1 - 2 * 0.499 / guidance.up_t) / k
    else:
        top, median = (float(betas.quantile(q, interpolation="higher")) for q in (share, 0.5))
        # Not steeper than a hundredth of beta, which few prompts may be apart.
        alpha, k = guidance.alpha, 2 * rise / max(10 * (top - median), 0.1)
        t = 10 * top + rise / k

    def acts(found):
        last = last_step(found.beta, k, t, guidance.up_t)
        return max(found.ratios) >= 1 + alpha and last > allowed

    concepts = _measured(parts, concept_prompts, concept)
    return FilterSettings(
        alpha=alpha,
        k=k,
        t=t,
        by=by,
        share=share,
        prompts=len(benign),
        left=sum(not acts(r) for r in benign) / len(benign),
        allowed=allowed,
        concept_prompts=len(concepts),
        caught=sum(acts(r) for r in concepts) / len(concepts) if concepts else None,
    )


def _measured(parts, prompts, concept):
    """Return the `Rewrite` of different prompts, empty ones left out."""
    texts = [p for p in dict.fromkeys(prompts) if p.strip()]
    # alpha decides about triggers only, which are not looked at here.
    return [rewrite(parts, t, encode(parts, [t]).states[0], concept, 0.0) for t in texts]
