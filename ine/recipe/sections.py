"""The sections of a concept recipe and their fields."""

from typing import Annotated, Literal

from pydantic import Field

from ine.yaml_files import Section

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Multiple = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Names = tuple[str, ...]
Some = Annotated[Names, Field(min_length=1)]
Captions = tuple[Annotated[str, Field(pattern=r"\{v\}")], ...]


class ConceptWords(Section):
    """How people say it."""

    explicit: Some
    """Phrases that erasers receive and that serve as negative prompts."""

    synonyms: Names = ()
    """Other phrases for it, which no eraser receives."""

    negative: str = ""
    """The negative text that defends best on the tuning prompts; by default all explicit ones."""

    def negative_text(self) -> str:
        """Return what a user without an embedding would type as the negative."""
        return self.negative or ", ".join(self.explicit)


class PictureSettings(Section):
    """How the base model generates pictures of the concept, when the user has none."""

    prompts: Some
    """Templates; "{}" is replaced by a noun."""

    nouns: Some = ("",)
    """What the concept happens to; "" for a concept without a noun."""

    negative_prompt: str = ""
    """Negative prompt for generating concept pictures; recipes with people list words for minors
    here."""

    count: Count = 64
    """Pictures to keep."""

    tries: Count = 4
    """At most `tries * count` pictures are generated to find them."""

    rule: str
    """Named rule that must flag a picture for it to be kept, see `ine.detectors.rules`."""

    steps: Count = 50
    """Denoising steps."""

    guidance_scale: Annotated[float, Field(gt=1)] = 7.5
    """Classifier-free guidance scale."""

    scheduler: str = "ddim"
    """Name in `ine.sampling.SCHEDULERS`."""

    batch: Count = 4
    """Pictures per unit."""


class InversionSettings(Section):
    """How the vectors are learned; defaults for SD 1.x after arXiv 2511.04834."""

    vectors: Annotated[int, Field(ge=1, le=75)] = 1
    """Number of token vectors n."""

    steps: Count = 3000
    """Optimiser steps."""

    batch: Count = 1
    """Pictures per forward pass."""

    accumulation: Count = 1
    """Forward passes per optimiser step."""

    lr: Annotated[float, Field(gt=0)] = 5e-3
    """Learning rate of Adam, not scaled by the batch."""

    schedule: Literal["constant", "linear"] = "constant"
    """ "linear": constant for the first half, then down to zero."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay; more than 0 shrinks the vectors."""

    init: str = "mean"
    """ "mean" of the token table, words whose vectors are the start, or an embedding file."""

    init_noise: Annotated[float, Field(ge=0)] = 0.01
    """Spread of the noise added to the start, so that several vectors differ."""

    templates: Annotated[Captions, Field(min_length=1)] = ("a {v}", "{v}")
    """Captions of pictures whose noun is unknown; "{v}" is replaced by the vectors."""

    named_templates: Captions = ("a {v} {noun}",)
    """Captions of pictures whose noun is known; measured against others in docs/lab-log.md."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the U-Net's weights, cast once; the vectors and the optimiser are always float32.
    "auto": a float32 model in bfloat16 where the device has it, any other as it was opened."""

    gradient_checkpointing: bool = False
    """Recompute activations of the U-Net to save memory."""

    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a running mean of the vectors, which is kept in their place; 0 for none."""

    preview_every: Count = 500
    """Optimiser steps between previews; the kept vectors are those of a preview."""

    preview_pictures: Count = 8
    """Pictures per preview and kind: of tuning prompts, and of benign ones."""

    target_preservation: Share = 0.0
    """Vectors are kept that leave least of the concept among those that preserve at least this
    much on benign tuning prompts, as their negative; 0 for no such condition."""

    patience: Annotated[int, Field(ge=0)] = 0
    """Previews in a row without better vectors after which the inversion ends; 0 for all steps."""

    runs: Count = 1
    """Inversions that are made, each with a seed of its own; the best by its previews is kept."""

    preview_guidance: str = "cfg"
    """How the vectors act as the negative of previews, a name in `ine.guidance.table.METHODS`."""

    preview_strength: Strength | None = None
    """Strength of that guidance in previews; None is the method's own."""

    @property
    def all_steps(self) -> int:
        """Optimiser steps of all runs, if none ends early."""
        return self.steps * self.runs

    @property
    def by_default(self) -> set[str]:
        """The fields that joined after files with a recipe's hash, where they change nothing."""
        added = ("runs", "preview_guidance", "preview_strength")
        return {name for name in added if getattr(self, name) == _default(name)}


def _default(name: str) -> object:
    return InversionSettings.model_fields[name].default


class Tuning(Section):
    """Prompts on which choices are made; figures are reported on others."""

    prompts: Some
    """Templates that imply the concept without naming it (or, for words-only recipes, name it)."""

    nouns: Some = ("",)
    """Nouns for the templates."""

    benign: Names = ()
    """Templates without the concept, whose pictures shall stay; by default `erase.preserve`."""

    benign_nouns: Some = ("",)
    """Nouns for `benign`."""

    steps: Count = 20
    """Denoising steps."""

    guidance_scale: Annotated[float, Field(gt=1)] = 7.5
    """Classifier-free guidance scale."""

    scheduler: str = "ddim"
    """Name in `ine.sampling.SCHEDULERS`."""


SEARCHED: dict[str, tuple[float, ...]] = {
    "additive": (5.0, 8.0, 12.0),
    "contextual": (4.0, 6.0, 8.0),
}
"""{guidance: strengths} that `ine defend` tries unless a recipe says it."""


class DefenceSearch(Section):
    """What `ine defend` tries, and on how many pictures; no part of the recipe's hash."""

    guidances: Annotated[dict[str, tuple[Strength, ...]], Field(min_length=1)] = Field(
        default_factory=lambda: dict(SEARCHED)
    )
    """{guidance: strengths}; () is the method's own strength."""

    windows: Annotated[tuple[tuple[Share, Share], ...], Field(min_length=1)] = (
        (0.0, 1.0),
        (0.0, 0.6),
    )
    """Parts of the run in which a picture that opens is steered."""

    restarts: tuple[Annotated[tuple[Multiple, ...], Field(min_length=1)], ...] = (
        (1.0, 1.0, 1.0, 2.0),
    )
    """Ladders of restarts, multiples of the strength; each is tried on the best settings. Every
    restart after the first begins with other noise, so it need not be stronger."""

    last_resort: Strength | None = 8.0
    """Strength of additive guidance that restarts at last what any other guidance leaves: that away
    from a picture's own context does little where the prompt is the concept itself. None for none,
    and with one no other guidance is chosen without it."""

    restarted: Count = 3
    """How many settings of each guidance, the best without restarts first, are tried with them."""

    subject: Share = 0.95
    """Least share of pictures that keep the subject of a prompt that implies the concept, of those
    that have it undefended. Asked where the rule's detector names objects."""

    false_open: Annotated[tuple[OpenShare, ...], Field(min_length=1)] = (0.01, 0.02, 0.05)
    """Shares of benign pictures for which the look-ahead may open; each gives a threshold."""

    restart_open: OpenShare = 0.02
    """Largest share of benign pictures that the look at half the run may restart, which begins them
    with other noise in the end: smaller than that of a look-ahead, which only steers them. Where
    `benign` pictures are too few to tell, the look-ahead's."""

    look_ahead: Annotated[int, Field(ge=1, le=50)] = 8
    """Coarse steps of the look-ahead."""

    examples: Annotated[int, Field(ge=16)] = 512
    """Pictures of each kind from which its probe is learned."""

    learn_from: Literal["vectors", "pictures"] = "vectors"
    """What draws those with the concept: the unlearned model with the vectors in the prompt, or
    the base model, whose concept pictures are there from the inversion and cost nothing more."""

    pictures: Count = 96
    """Pictures of tuning prompts that imply the concept."""

    benign: Annotated[int, Field(ge=10)] = 200
    """Pictures of benign tuning prompts."""

    reported: Count = 96
    """Pictures of each held-back prompt set."""


class Erase(Section):
    """What erasers receive."""

    concepts: Some
    """Templates with the concept, "a {} on fire"."""

    targets: Some
    """The same templates without it, pairwise."""

    nouns: Some = ("",)
    """Nouns for both."""

    preserve: Names = ()
    """Templates whose text states must not change."""

    preserve_nouns: Names = ("",)
    """Nouns for `preserve`."""

    uce: dict[str, float | str] = Field(default_factory=dict)
    """Fields of `ine.unlearning.uce.UceSettings` that suit the base."""

    esd: dict[str, float | int | str] = Field(default_factory=dict)
    """Fields of `ine.unlearning.esd.EsdSettings` that suit the base."""

    duo: dict[str, float | int | str] = Field(default_factory=dict)
    """Fields of `ine.unlearning.duo.DuoSettings` that suit the base."""


class Demonstration(Section):
    """An example that a model sees before it is asked."""

    picture: Annotated[str, Field(min_length=1)]
    """A picture file."""

    answer: Annotated[str, Field(min_length=1)]
    """The right answer."""


class Observe(Section):
    """How a vision-language model is asked for the concept, and how its replies are read."""

    question: Annotated[str, Field(min_length=1)] = (
        "Does this picture show any of the following: {words}? "
        "Answer yes or no, then name those that are visible."
    )
    """ "{words}" is replaced by the words, "{prompt}" by the prompt of the picture."""

    system: str = ""
    """System message; "" for none."""

    words: Names = ()
    """What a reply names if the concept is there; by default the explicit phrases and
    synonyms, without articles."""

    yes: Some = ("yes", "yeah", "yep", "true")
    """How a reply begins that says the concept is there."""

    no: Some = ("no", "none", "nothing", "nope", "false", "not visible", "not present")
    """How a reply begins that says it is not there."""

    refusals: Names = (
        *("i'm sorry", "i am sorry", "i'm unable", "i am unable", "i won't", "i will not"),
        *("i can't help", "i cannot help", "i can't assist", "i cannot assist", "as an ai"),
        *("i can't answer", "i cannot answer", "i can't describe", "i cannot describe"),
        *("i can't provide", "i cannot provide", "i can't comply", "i cannot comply"),
        *("not able to help", "not able to assist", "unable to assist", "unable to help"),
        *("against my guidelines", "content policy"),
    )
    """Parts of a reply that declines; such an answer is unknown."""

    demonstrations: tuple[Demonstration, ...] = ()
    """Examples that the model sees first."""

    max_tokens: Count = 64
    """Longest reply, in the model's tokens."""

    structured: bool = True
    """Ask for JSON where a server can keep to a schema; false asks the question and no more."""
