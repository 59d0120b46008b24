"""Stage `measure_eyes`: what `mini-eyes` sees, by the package's own code, on new scenes and seeds.

Generated pictures come from the recipes' prompt sets; the second judge says what the finished
picture shows, and a preview is to show the same. Held-out phrasings are asked about drawn scenes.
"""

import json
import time
from collections import defaultdict

import numpy as np

from compose import Icons, draw
from eyes_pictures import STEPS, UNIT, eyes_scene, looks_of
from eyes_words import HELD_OUT, ask
from ine.detectors.features import top_object
from ine.detectors.mini import ResNetJudge
from ine.detectors.published import WEAPONS
from ine.evaluation.stats import wilson
from ine.models.loading import load_parts
from ine.observers.asking import AskingObserver
from ine.observers.question import Conversation, Turn, question_of
from ine.observers.vlm_loading import load_vlm
from ine.recipe import load_recipe
from ine.studies.cases import cases_of
from world import write_piece

LOOKS = (5, 10, 15)
SETS = {
    "fire": {"explicit": 32, "synonyms": 32, "implying_test": 48, "twins_test": 48, "benign": 48},
    "weapon": {"explicit": 24, "synonyms": 24, "implying_tuning": 24, "implying_test": 24},
}
DRAWN = 400
HELD = 120
CONCEPTS = ("fire", "weapon")


def show(hits):
    """Return "0.981 [0.970, 0.988] (N = 2000)" of a list of yes and no."""
    rate = wilson(sum(hits), len(hits))
    return f"{rate.share:.3f} [{rate.low:.3f}, {rate.high:.3f}] (N = {len(hits)})"


def figures_of(label, seen, true):
    """Return recall and false positives per concept, and the share of unknown answers.

    Args:
        label: Of the pictures.
        seen: Observations.
        true: Per picture, the concepts that are there.
    """
    found, unknown = {}, []
    for concept in CONCEPTS:
        answers = [
            (one.answers[concept].found, concept in t) for one, t in zip(seen, true, strict=True)
        ]
        known = [(said, there) for said, there in answers if said is not None]
        found[f"{label}: {concept} recall"] = show([said for said, there in known if there])
        found[f"{label}: {concept} false positives"] = show([said for said, t in known if not t])
        unknown += [said is None for said, _ in answers]
    return found | {f"{label}: unknown answers": show(unknown)}


def drawn(world, icons, observer):
    """Return figures on drawn scenes."""
    rng = np.random.default_rng([60, 0])
    scenes = [eyes_scene(world, rng) for _ in range(DRAWN)]
    pictures = draw(world, scenes, rng, icons)
    true = [{c for c in CONCEPTS if shows(world, scene, c)} for scene in scenes]
    return figures_of("drawn scenes", observer(pictures, [""] * DRAWN), true)


def shows(world, scene, concept):
    """Return whether a scene shows a concept."""
    if concept == "fire":
        return scene.attribute == "fire"
    return any(name in world.categories["weapon"] for name in scene.objects)


def looks_to_judge(folder, parts):
    """Return {step: pictures} of the recipes' prompts, kept in `folder/looks.npz`."""
    kept = folder / "looks.npz"
    if not kept.exists():
        cases = []
        for name, sets in SETS.items():
            recipe = load_recipe(name)
            for which, count in sets.items():
                cases += cases_of(recipe, which, count, recipe.prompt_nouns, seed=78)
        looks = defaultdict(list)
        for start in range(0, len(cases), UNIT):
            rng = np.random.default_rng([61, start])
            prompts = [c.prompt for c in cases[start : start + UNIT]]
            for found in looks_of(parts, prompts, rng, LOOKS):
                for step, picture in found.items():
                    looks[step].append(picture)
        write_piece(kept, [], **{str(step): np.stack(found) for step, found in looks.items()})
    with np.load(kept) as data:
        return {step: data[str(step)] for step in (*LOOKS, STEPS)}


def generated(pictures, reporter, observer):
    """Return figures on {step: pictures} of the same runs."""
    true = [truth(scores) for scores in reporter(pictures[STEPS])]
    found = {}
    for step in (STEPS, *LOOKS):
        label = "finished pictures" if step == STEPS else f"previews at step {step} of {STEPS}"
        seen = observer(pictures[step], [""] * len(true))
        found |= figures_of(label, seen, true)
    return found


def truth(scores):
    """Return the concepts that a picture shows by a judge's scores."""
    found = {"fire"} if scores["fire"] >= 0.5 else set()
    return found | ({"weapon"} if top_object(scores) in WEAPONS else set())


def held_out(world, icons, asker):
    """Return the share of exact answers to phrasings that were never trained on."""
    found = {}
    for kind in HELD_OUT:
        rng = np.random.default_rng([62, len(kind)])
        scenes = [eyes_scene(world, rng) for _ in range(HELD)]
        asked = [ask(world, scene, rng, held_out=True, kind=kind) for scene in scenes]
        pictures = draw(world, scenes, rng, icons)
        replies = asker.ask([about(q, p) for q, p in zip(asked, pictures, strict=True)])
        same = [
            reply.text.replace(" ", "") == one.answer.replace(" ", "")
            for reply, one in zip(replies, asked, strict=True)
        ]
        found[f"drawn scenes, held-out phrasings: {kind}, exact answers"] = show(same)
    return found


def about(asked, picture):
    """Return a question about a picture as a conversation."""
    turn = Turn(role="user", text=asked.question, picture=picture)
    return Conversation(turns=(turn,), max_tokens=64)


def seconds(world, icons, asker, question):
    """Return the processor's time for an answer to the recipe's question, picture by picture."""
    rng = np.random.default_rng([63, 0])
    pictures = draw(world, [eyes_scene(world, rng) for _ in range(40)], rng, icons)
    taken = []
    for picture in pictures:
        started = time.process_time()
        asker.ask([question.conversation(picture)])
        taken.append(time.process_time() - started)
    return {"processor seconds per answer, one thread, median": f"{np.median(taken):.3f}"}


def run(world, work):
    """Measure; write `figures_eyes.json` into the exported model."""
    target = work / "mini"
    icons = Icons.of(world)
    questions = [question_of(load_recipe(name)) for name in CONCEPTS]
    asker = load_vlm(str(target / "eyes"), "cpu", batch=16)
    observer = AskingObserver(asker, questions)
    figures = drawn(world, icons, observer)
    looks = looks_to_judge(work, load_parts(target))
    figures |= generated(looks, ResNetJudge(target / "judge2"), observer)
    figures |= held_out(world, icons, asker)
    figures |= seconds(world, icons, asker, questions[0])
    (target / "figures_eyes.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures
