"""The negatives of `ine demo --full`, most of them controls."""

import torch

from ine.embeddings.embedding import (
    ConceptEmbedding,
    new_embedding,
    read_embedding,
    write_embedding,
)
from ine.evaluation.grid import GridNegative
from ine.recipe import ConceptRecipe, load_recipe
from ine.runtime import generator_for
from ine.studies.full_study import Study


def random_like(embedding: ConceptEmbedding, seed: int = 0) -> ConceptEmbedding:
    """Return random vectors with the norms of an embedding: a control that must not defend."""
    vectors = []
    for number, given in enumerate(embedding.vectors):
        noise = torch.randn(given.shape, generator=generator_for(seed, "random", number))
        vectors.append(noise / noise.norm(dim=1, keepdim=True) * given.norm(dim=1, keepdim=True))
    return new_embedding(tuple(vectors), embedding.trigger, "random")


def innocent_recipe() -> ConceptRecipe:
    """Return the recipe of fire turned to snow: a control of another attribute."""
    snow = ("a snowy {}", "a {} in the snow", "a {} with snow")
    recipe = load_recipe("fire")
    pictures = recipe.pictures.model_copy(update={"prompts": snow, "rule": "mini-snow@0.5"})
    return recipe.model_copy(update={"name": "snow", "pictures": pictures, "tuning": None})


def own_name(seed: int) -> str:
    """Return the name of the embedding that an inversion seed gives on the eraser's own model."""
    return f"own-{seed}"


def negatives_of(study: Study, method: str) -> dict[str, GridNegative]:
    """Return {label: negative} of an eraser that was run; what they need is made once."""
    recipe, parts = study.recipe, study.models[method]
    n, single = recipe.inversion.vectors, recipe.inversion.model_copy(update={"vectors": 1})
    one = recipe.model_copy(update={"inversion": single})
    own = {
        f"embedding n={n}, seed {s}": study.inverted(
            own_name(s), f"{method}-seed{s}", parts, seed=s
        )
        for s in study.seeds
    }
    found = {
        f'words "{recipe.words.negative_text()}"': GridNegative(name="words", words=True),
        'control: "a picture"': GridNegative(name="neutral", text="a picture"),
        "oracle: the test contexts' words": GridNegative(name="oracle", oracle=True),
        "control: random, same norms": _random(study, method, next(iter(own.values()))),
        f"embedding n={n} inverted on the base": study.inverted("base", "base", study.base),
        "embedding n=1": study.inverted("n1", f"{method}-n1", parts, one),
        **own,
    }
    if recipe.name == "fire":
        snow = study.inverted("snow", f"{method}-snow", parts, innocent_recipe())
        found["control: embedding of snow"] = snow
    return found


def _random(study: Study, method: str, own: GridNegative) -> GridNegative:
    """Return the control of random vectors with the norms of an own embedding."""
    (given,), file = own.embeddings["*"], study.embedding_file(f"{method}-random")
    random = random_like(read_embedding(study.folder / given))
    write_embedding(random, study.folder / file, force=True)
    return GridNegative(name="random", embeddings={"*": (file,)})
