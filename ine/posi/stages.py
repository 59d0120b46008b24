"""The two stages of POSI: fine-tuning on pairs, and PPO on a reward of pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ine.locks import sole_writer
from ine.observers.adapters import needs_training_packages
from ine.optim import StateFile
from ine.posi.pair_files import Pair
from ine.posi.picture_stage import PictureStage, key_of_stage, write_rows
from ine.posi.recipe import PosiRecipe
from ine.posi.trained import Asking, with_adapters
from ine.refining.generators import Generator
from ine.store.pictures import Store
from ine.training.adapters import write_adapter
from ine.training.answers import Drawing, check_lengths
from ine.training.bases import Base, load_base
from ine.training.examples import Example, asked_text
from ine.training.kept_pictures import KeptPictures
from ine.training.lora import with_lora
from ine.training.policy import policy_of, reference_of
from ine.training.ppo import PpoResult, train_ppo
from ine.training.rewards import PictureReward, load_judges
from ine.training.running import OnStep, own_randomness
from ine.training.sft import SftResult, fine_tune
from ine.training.stage import about_training, finished

STATE = "state.safetensors"


def train_on_pairs(
    recipe: PosiRecipe,
    pairs: Sequence[Pair],
    asking: Asking,
    base: Path,
    out: Path,
    *,
    device: str = "auto",
    force: bool = False,
    on_step: OnStep | None = None,
) -> SftResult:
    """Fine-tune an adapter on pairs; see `ine.training.sft.fine_tune`.

    Raises:
        PromptError: A pair does not fit into the model's context.
        IneError: As `fine_tune`.
    """
    needs_training_packages()
    loaded = load_base(base, device)
    asking.check(loaded.processor)
    rows = [
        Example(asked=asking.template.asked(asking.instruction, pair.toxic), answer=pair.clean)
        for pair in pairs
    ]
    texts = [asked_text(loaded.processor, row.asked) + row.answer for row in rows]
    check_lengths(loaded.model, loaded.tokenizer, texts, Drawing(max_tokens=1))
    result = fine_tune(loaded, rows, recipe.sft, out, force=force, on_step=on_step)
    asking.write(out)
    return result


def train_on_pictures(
    recipe: PosiRecipe,
    prompts: Sequence[str],
    asking: Asking,
    stage: PictureStage,
    generator: Generator,
    on_rollout: Callable[[int, int, dict[str, float]], None] | None = None,
) -> PpoResult:
    """Train an adapter by PPO; a killed run goes on at its last rollout, to the same bytes.

    Args:
        recipe: Its PPO, LoRA and reward.
        prompts: As users write them.
        asking: How the model is asked.
        stage: Where from and to.
        generator: Makes the pictures of rewritten prompts.
        on_rollout: Called with (finished rollouts, rollouts in all, the last one's figures), which
            here also have how many pictures were made and asked for.

    Raises:
        IneError: A model is missing or does not fit, a picture failed, or `out` holds another run.
    """
    needs_training_packages()
    judges = load_judges(recipe.reward)
    base = with_adapters(load_base(stage.base, stage.device), stage.adapters)
    kept = KeptPictures(generator, Store(stage.store))
    key = key_of_stage("ppo", recipe, prompts, asking, stage, base, generator)
    total = recipe.ppo.rollouts_for(len(prompts))

    def note(done: int, row: dict[str, float]) -> None:
        if on_rollout:
            on_rollout(done, total, {**row, **kept.tally, "making": kept.spent["seconds"]})

    with sole_writer(stage.out, "ine posi train", folder=True):
        about = finished(stage.out, key, stage.force)
        if about is not None:
            return PpoResult(**about["result"])
        policy = policy_of(_adapted(base, recipe), base.tokenizer)
        result = train_ppo(
            policy,
            reference_of(policy.model),
            prompts,
            lambda prompt: asking.query(base.processor, prompt),
            PictureReward(recipe.reward, kept, judges),
            recipe.ppo,
            state=StateFile(
                path=stage.out / STATE, key=key, command="ine posi train", force=stage.force
            ),
            on_rollout=note,
        )
        _write(policy.model, result, recipe, asking, stage, base, key)
    return result


def _adapted(base: Base, recipe: PosiRecipe) -> object:
    """Return the base with a fresh adapter, whose first values the seed decides."""
    from transformers import set_seed

    with own_randomness():
        set_seed(recipe.ppo.seed)
        return with_lora(base, recipe.sft.lora, None)


def _write(
    model: object,
    result: PpoResult,
    recipe: PosiRecipe,
    asking: Asking,
    stage: PictureStage,
    base: Base,
    key: str,
) -> None:
    """Write adapter, figures and how it was asked; the adapter comes last and says it is whole."""
    write_rows(stage, asking, result.rows)
    about = about_training(
        "ppo", key, base, recipe.ppo, [row["policy_loss"] for row in result.rows]
    )
    outcome = {"rows": list(result.rows), "best": result.best, "stopped": result.stopped}
    write_adapter(model, stage.out, {**about, "result": outcome})
