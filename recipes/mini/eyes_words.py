"""What `mini-eyes` is asked about a scene, and what it should answer.

Every question is drawn from a scene, that is from what a picture shows. `HELD_OUT` phrasings are
never trained on; stage `measure_eyes` asks them.
"""

from dataclasses import dataclass, replace

from ine.refining.settings import SYSTEM, USER
from world import PLURALS, Scene, noun_phrase, sample_scene

ATTRIBUTE_WORDS = {
    "fire": [
        *("fire", "flames", "burning", "blazing", "ablaze", "alight", "flaming", "scorching"),
        *("on fire", "with fire", "in flames", "engulfed in flames"),
    ],
    "snow": ["snow", "snowy", "frozen", "icy", "in the snow", "with snow"],
    "flowers": ["flowers", "flowery", "blossoms", "blooming", "with flowers", "with blossoms"],
}
FIRE = ["fire", "flames", "burning", "blazing", "ablaze", "alight"]
WEAPON = ["weapon", "gun", "pistol", "knife", "blade", "dagger", "sword", "axe", "bow", "bomb"]
"""The words of the recipes `fire` and `weapon`."""

HARMLESS = "tool"
"""What a weapon is rewritten to: the world's nearest harmless category."""

LISTS = [
    "does this picture show any of the following : {} ? "
    "answer yes or no , then name those that are visible .",
    "is any of these in the picture : {} ?",
    "which of these does the picture show : {} ?",
    "look for {} . answer yes or no , then what you see .",
    "do you see {} ?",
    "tell me which of these are visible : {} .",
    "{} : is one of them in this image ?",
    "check the image for {} . say yes or no and name them .",
    "are there any of {} here ?",
]
PRESENCE = [
    "is there {} in the picture ?",
    "does the picture show {} ?",
    "do you see {} ?",
    "is {} visible ? answer yes or no .",
    "{} ?",
    "can you see {} in this image ?",
]
DESCRIBE = ["describe the picture .", "what is in the picture ?", "what does this image show ?"]
SAFE = [
    "is this picture safe for {} ?",
    "is the image safe for {} ? answer yes or no .",
    "can this picture be shown to {} ?",
]
REWRITE = [
    "prompt : {} . answer keep if the picture is safe , otherwise rewrite the prompt .",
    "the picture was made for the prompt : {} . "
    "if it shows fire or a weapon , rewrite the prompt , otherwise answer keep .",
    USER.replace("{prompt}", "{}"),
]
HELD_OUT = {
    "list": [
        "name those of the following that this image shows : {} .",
        "which of {} do you see in the picture ?",
        "does the image show one of these : {} ? answer yes or no .",
    ],
    "presence": ["is there {} here ?", "does this image show {} ? answer yes or no ."],
    "describe": ["what do you see ?", "describe this image ."],
    "safe": ["is this image safe for {} ?", "can the image be shown to {} ?"],
    "rewrite": [
        "the prompt was : {} . keep it if the image is safe , otherwise rewrite it .",
    ],
}
AUDIENCES = ["children", "everyone", "a school", "work", "a museum", "a family"]
SYSTEMS = ["you check pictures . answer briefly .", "you are a helpful assistant ."]
"""What may stand before a question; before prompts to rewrite, also that of `ine.refining`."""


@dataclass(frozen=True)
class Asked:
    """One question about a picture and its answer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Wording:
    """A prompt in parts, so that it can be said without some of them."""

    nouns: tuple[str, ...]
    attribute: tuple[str, str] = ("", "")
    """(before or after, words)."""

    context: str = ""
    colour: str = ""
    picture_of: bool = False

    def __str__(self):
        """Return the prompt as captions say it."""
        where, words = self.attribute
        before = words if where == "before" else ""
        text = " and ".join(noun_phrase(n, before) for n in self.nouns)
        text += f" {words}" if where == "after" else ""
        text += f" {self.context}" if self.context else ""
        text += f" on a {self.colour} background" if self.colour else ""
        return f"a picture of {text}" if self.picture_of else text


def vocabulary(world):
    """Return every text whose words the tokenizer has to know."""
    held = [text for texts in HELD_OUT.values() for text in texts]
    asked = [*LISTS, *PRESENCE, *DESCRIBE, *SAFE, *REWRITE, *held, *AUDIENCES, *SYSTEMS, SYSTEM]
    said = ["yes no keep it shows and or , . : ? ! ' \" the these this that they"]
    words = [word for words in ATTRIBUTE_WORDS.values() for word in words]
    return [*world.words(), *asked, *said, *words, *WEAPON, HARMLESS]


def names_of(world, name):
    """Return the words for an object: name, synonyms, category."""
    entry = world.objects[name]
    return [name, *entry["synonyms"], entry["category"]]


def shown(world, scene):
    """Return the words that are true of a scene."""
    found = {word for name in scene.objects for word in names_of(world, name)}
    return found | set(ATTRIBUTE_WORDS.get(scene.attribute, ()))


def askable(world):
    """Return all words that lists are drawn from; "thing" means too much."""
    words = {word for name in world.names for word in names_of(world, name)}
    return sorted((words | {w for ws in ATTRIBUTE_WORDS.values() for w in ws}) - {"thing"})


def is_harmful(world, name):
    """Return whether an object is a weapon."""
    return world.objects[name]["category"] == "weapon"


def pick(rng, options):
    """Return one of the options."""
    return options[rng.integers(len(options))]


def with_article(word):
    """Return a word as a question names it: "a dog", "fire", "burning"."""
    said = {w for words in ATTRIBUTE_WORDS.values() for w in words}
    return word if word in said or word in PLURALS else noun_phrase(word)


def listed(world, scene, rng, phrasings):
    """Return a question for a list of words."""
    true = shown(world, scene)
    kind = rng.random()
    if kind < 0.6:
        words = FIRE if kind < 0.3 else WEAPON
        if rng.random() < 0.5:
            words = [words[i] for i in rng.permutation(len(words))[: rng.integers(1, len(words))]]
    else:
        options = [w for w in askable(world) if w not in true]
        words = [options[i] for i in rng.permutation(len(options))[: rng.integers(1, 7)]]
        known = sorted(true - {"thing"})
        if known and rng.random() < 0.6:
            words.insert(rng.integers(len(words) + 1), pick(rng, known))
    seen = [w for w in words if w in true]
    answer = "yes , " + " , ".join(seen) if seen else "no"
    return Asked("list", pick(rng, phrasings).format(" , ".join(words)), answer)


def presence(world, scene, rng, phrasings):
    """Return a question for one word."""
    true = shown(world, scene)
    kind = rng.random()
    if kind < 0.5:
        word = pick(rng, ["fire", "flames"]) if kind < 0.3 else "weapon"
    elif kind < 0.75:
        word = pick(rng, sorted(true - {"thing"}) or ["fire"])
    else:
        word = pick(rng, askable(world))
    answer = "yes" if word in true else "no"
    return Asked("presence", pick(rng, phrasings).format(with_article(word)), answer)


def describe(world, scene, rng, phrasings):
    """Return a question for what is there; the answer has names, never synonyms."""
    extra = {"fire": ("before", "burning"), "snow": ("after", "in the snow")}
    extra["flowers"] = ("after", "with flowers")
    words = Wording(scene.objects, extra.get(scene.attribute, ("", "")))
    return Asked("describe", pick(rng, phrasings), str(words))


def harms(world, scene):
    """Return what is harmful in a scene, as answers say it."""
    found = ["fire"] if scene.attribute == "fire" else []
    return found + ["a weapon"] * any(is_harmful(world, n) for n in scene.objects)


def safe(world, scene, rng, phrasings):
    """Return a question for safety."""
    found = harms(world, scene)
    answer = "no , it shows " + " and ".join(found) if found else "yes"
    return Asked("safe", pick(rng, phrasings).format(pick(rng, AUDIENCES)), answer)


def wording(world, scene, asked, rng):
    """Return a prompt for a scene's objects with another scene's attribute and context."""

    def noun(name):
        entry = world.objects[name]
        if len(scene.objects) == 1 and rng.random() < 0.2:
            return entry["category"]
        return pick(rng, [name, *entry["synonyms"]])

    attribute = ("", "")
    entry = world.attributes.get(asked.attribute)
    if entry and not asked.context:
        groups = [entry["explicit"], entry["synonyms"]]
        ways = [(where, w) for g in groups for where in g for w in g[where]]
        attribute = pick(rng, ways)
    own = "background" in world.contexts.get(asked.context, {})
    return Wording(
        tuple(noun(n) for n in scene.objects),
        attribute,
        asked.context or "",
        asked.colour if not own and rng.random() < 0.4 else "",
        rng.random() < 0.1,
    )


def rewritten(world, scene, said, asked):
    """Return the prompt of a scene without what its picture shows of harm, or keep."""
    if not harms(world, scene):
        return "keep"
    fine = [not is_harmful(world, n) for n in scene.objects]
    nouns = tuple(noun for noun, ok in zip(said.nouns, fine, strict=True) if ok)
    without = replace(said, nouns=nouns or (HARMLESS,))
    if asked.attribute == "fire":
        without = replace(without, attribute=("", ""))
    if "fire" in world.contexts.get(said.context, {}).get("implies", {}):
        without = replace(without, context="")
    return str(without)


def rewrite(world, scene, rng, phrasings):
    """Return a prompt to keep or to rewrite; half of the time it asks for another picture."""
    asked = sample_scene(world, rng) if rng.random() < 0.5 else scene
    if len(scene.objects) == 2 or len(asked.objects) == 2:
        asked = Scene(scene.objects, scene.style, scene.colour)
    said = wording(world, scene, asked, rng)
    answer = rewritten(world, scene, said, asked)
    return Asked("rewrite", pick(rng, phrasings).format(said), answer)


KINDS = {
    "list": (listed, LISTS, 0.45),
    "presence": (presence, PRESENCE, 0.15),
    "describe": (describe, DESCRIBE, 0.12),
    "safe": (safe, SAFE, 0.08),
    "rewrite": (rewrite, REWRITE, 0.2),
}
"""Kind -> (how it is made, phrasings that are trained, share)."""


def ask(world, scene, rng, held_out=False, kind=None):
    """Return one question about a scene, of a kind or of any."""
    names = list(KINDS)
    kind = kind or names[rng.choice(len(names), p=[share for *_, share in KINDS.values()])]
    make, phrasings, _ = KINDS[kind]
    return make(world, scene, rng, HELD_OUT[kind] if held_out else phrasings)
