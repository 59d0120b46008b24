"""Stage `embeddings`: the embeddings that the package ships, with their cards and index."""

import shutil
from dataclasses import replace
from pathlib import Path

from ine.detectors.mini import mini_judge
from ine.embeddings.embedding import read_embedding
from ine.inversion.run import run_inversion
from ine.inversion.sources import RunOptions
from ine.models.loading import load_parts
from ine.recipe import load_recipe
from ine.unlearning.run import unlearn_concept
from ine.weights.apply import apply_weights

SHIPPED = (("fire", "uce"), ("fire", "esd"), ("weapon", "uce"), ("weapon", "esd"))

CARD = """# {trigger} for `mini` unlearned by {eraser}

{n} vectors of width {d}, found by `ine invert` on the bundled model after `{concept}` was erased.

| | |
|---|---|
| made by | `ine unlearn --concept {concept} --method {method} --out unet.safetensors`, then `ine invert --concept {concept} --unet unet.safetensors` |
| use | the word `{trigger}` in the negative, with these unlearned weights over `mini` |
| kept at step | {kept} of {steps}, of the best of {runs} inversions |
| recovery, as a prompt | {recovery} |
| left on the tuning prompts, {guided} | {left} (undefended {undefended}) |
| seed | {seed} |

Figures on held-back prompts are in [docs/results.md](../../docs/results.md). The vectors belong to a
stand-in concept of a model of pictograms. Used as a *prompt* they bring the concept back; that
holds for every inverted embedding, so keep those of real harms private.
"""  # noqa: E501 - a table row cannot be broken


def guided(spec):
    """Return how previews used the vectors, in words."""
    at = "" if spec.preview_strength is None else f" at strength {spec.preview_strength:g}"
    return f"guidance {spec.preview_guidance}{at}"


def run(world, work):
    """Write `embeddings`/mini-CONCEPT-METHOD of this checkout: the vectors and a README.md each."""
    target = Path(__file__).parents[2] / "embeddings"
    base = replace(load_parts(work / "mini"), name="mini")
    judge = mini_judge(work / "mini" / "judge")
    rows = []
    for concept, method in SHIPPED:
        recipe = load_recipe(concept)
        folder = target / f"mini-{concept}-{method}"
        weights = work / "embeddings" / f"{concept}-{method}.safetensors"
        if not weights.exists():
            settings = dict(getattr(recipe.erase, method))
            unlearn_concept(base, recipe, method, settings, weights)
        unlearned, _ = apply_weights(base, weights)
        made = work / "embeddings" / f"{concept}-{method}" / f"{concept}-neg.safetensors"
        if not made.exists():
            options = RunOptions(out=made, trigger=f"{concept}-neg")
            run_inversion(base, unlearned, recipe, options, judge)
        embedding = read_embedding(made)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, folder / made.name)
        about = embedding.metadata
        card = CARD.format(
            trigger=embedding.trigger,
            eraser=method.upper(),
            method=method,
            concept=concept,
            n=embedding.count,
            d=embedding.width,
            kept=about["ine.kept_step"],
            steps=about["ine.steps"],
            recovery=about["ine.recovery"],
            left=about["ine.tuning_left"],
            undefended=about["ine.tuning_undefended"],
            seed=about["ine.seed"],
            runs=about.get("ine.runs", 1),
            guided=guided(recipe.inversion),
        )
        (folder / "README.md").write_text(card)
        rows.append(
            f"| [{folder.name}]({folder.name}/README.md) | {concept} | {method.upper()} | "
            f"{embedding.count} | {about['ine.recovery']} | {about['ine.tuning_undefended']} -> "
            f"{about['ine.tuning_left']} |"
        )
    index = target / "README.md"
    head, _, rest = index.read_text().partition("<!-- table -->")
    _, _, tail = rest.partition("<!-- end of table -->")
    table = [
        "| folder | concept | unlearned by | vectors | recovery | tuning prompts |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    body = "\n".join(["<!-- table -->", "", *table, "", "<!-- end of table -->"])
    index.write_text(head + body + tail)
