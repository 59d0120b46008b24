"""Stage `eyes`: `mini-eyes`, a small LLaVA that looks at the world of the bundled model.

Its vision tower begins as the first judge's; projector and language model begin untrained. Several
questions about one picture are one row: each sees the picture and itself.

Shape letters: B pictures, T tokens of a row, V vocabulary.
"""

import json
import re
import shutil

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import loop
from compose import Icons, draw
from eyes_pictures import eyes_scene
from eyes_words import SYSTEMS, ask, askable, pick, shown, vocabulary
from ine.refining.settings import SYSTEM
from world import SIZE, read_pieces

STEPS = 2300
BATCH = 12
QUESTIONS = 4
"""Per picture."""

MODERATED = 0.12
"""Share of batches with prompts to rewrite alone."""

WIDTH = 160
LAYERS = 3
PATCH = 16
LONGEST = 512
IMAGE_TOKENS = (SIZE // PATCH) ** 2 + 1
SPECIAL = ["<pad>", "<s>", "</s>", "[UNK]", "<image>", "<|system|>", "<|user|>", "<|assistant|>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> "
    "{% if m.content is string %}{{ m.content }} {% else %}"
    "{% for c in m.content if c.type == 'image' %}<image> {% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text }} {% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(world):
    """Return a WordPiece tokenizer: a token per word, letters for words that it does not know."""
    known = sorted(set(re.findall(r"[a-z]+|[^a-z\s]", " ".join(vocabulary(world)).lower())))
    pieces = [*SPECIAL, *known, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    raw = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=40))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="[UNK]",
        extra_special_tokens={
            "image_token": "<image>",
            **{f"{role}_token": f"<|{role}|>" for role in ("system", "user", "assistant")},
        },
        padding_side="left",
        model_max_length=LONGEST,
    )


def build_processor(tokenizer):
    """Return the processor: pictures of 64 x 64 and text."""
    size = {"height": SIZE, "width": SIZE}
    middle = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size, **middle),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build(tokenizer, judge):
    """Return the model, untrained but for its vision tower, which is the judge's in a folder."""
    tower = CLIPModel.from_pretrained(judge, dtype=torch.float32).vision_model
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        **ids,
    )
    looks = {k: v for k, v in tower.config.to_dict().items() if k != "_name_or_path"}
    config = LlavaConfig(
        vision_config=looks,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
        **ids,
    )
    net = LlavaForConditionalGeneration(config)
    net.model.vision_tower.load_state_dict(tower.state_dict())
    for name, p in net.model.vision_tower.named_parameters():
        # Not on the way to the features of the last layer.
        p.requires_grad_("post_layernorm" not in name)
    return net


class Rows:
    """Questions and answers as rows of tokens, each question seeing the picture and itself."""

    def __init__(self, tokenizer):
        self.ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self.user, self.image = self.ids("<|user|>"), self.ids("<image>")

    def __call__(self, asked, systems):
        """Return (ids, positions, mask, targets) of several questions per picture.

        Args:
            asked: B lists of questions.
            systems: B system messages, "" for none.

        Returns:
            Three (B, T) tensors and the mask (B, 1, T, T); a target is -100 but where the next
            token belongs to an answer.
        """
        rows = [self._row(*pair) for pair in zip(asked, systems, strict=True)]
        longest = max(len(ids) for ids, *_ in rows)
        out = torch.zeros(3, len(rows), longest, dtype=torch.long)
        part = torch.full((len(rows), longest), -1)
        out[2] = -100
        for row, (ids, positions, parts, targets) in enumerate(rows):
            for table, values in zip((*out, part), (ids, positions, targets, parts), strict=True):
                table[row, : len(values)] = torch.tensor(values)
        later = torch.ones(longest, longest, dtype=torch.bool).tril()
        same = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
        mask = torch.zeros(same.shape).masked_fill(~(same & later), torch.finfo(torch.float).min)
        return out[0], out[1], mask[:, None], out[2]

    def _row(self, asked, system):
        first = self.ids(f"<|system|> {system}") if system else []
        first = first + self.user + self.image * IMAGE_TOKENS
        ids, positions = list(first), list(range(len(first)))
        parts, targets = [0] * len(first), [-100] * len(first)
        for part, one in enumerate(asked, 1):
            question = self.ids(f"{one.question} <|assistant|>")
            answer = self.ids(f"{one.answer} </s>")
            ids += question + answer
            positions += range(len(first), len(first) + len(question + answer))
            parts += [part] * len(question + answer)
            targets += [-100] * (len(question) - 1) + answer + [-100]
        return ids, positions, parts, targets


class Stored:
    """Previews and generated pictures with their scenes."""

    def __init__(self, folder, names=("previews", "generated")):
        found = [read_pieces(folder / n, "pictures") for n in names if (folder / n).is_dir()]
        self.pictures = np.concatenate([pictures for pictures, _ in found])
        self.scenes = [scene for _, scenes in found for scene in scenes]


def pictures_of(world, icons, stored, rng, count):
    """Return (pixels (B, 3, 64, 64) in [-1, 1], scenes): half drawn, with noise, half stored."""
    half = count // 2
    picked = rng.integers(len(stored.scenes), size=half)
    scenes = [eyes_scene(world, rng) for _ in range(count - half)]
    drawn = draw(world, scenes, rng, icons)
    x = torch.from_numpy(np.concatenate([drawn, stored.pictures[picked]]))
    x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
    size = rng.uniform(0, 0.12, (count, 1, 1, 1))
    noise = torch.from_numpy(size * rng.standard_normal(x.shape)).float()
    return (x + noise).clamp(-1, 1), scenes + [stored.scenes[i] for i in picked]


def questions_for(world, scenes, rng):
    """Return (several questions per scene, B system messages).

    Now and then all are prompts to rewrite, as `ine.refining` asks: its message is long.
    """
    moderated = rng.random() < MODERATED
    kind = "rewrite" if moderated else None
    asked = [[ask(world, scene, rng, kind=kind) for _ in range(QUESTIONS)] for scene in scenes]
    if moderated:
        return asked, [SYSTEM] * len(scenes)
    return asked, [pick(rng, SYSTEMS) if rng.random() < 0.05 else "" for _ in scenes]


class Words:
    """Which tokens are true of a scene: what the picture's first feature is pulled towards."""

    def __init__(self, world, tokenizer):
        self.world = world
        self.ids = {w: tokenizer(w, add_special_tokens=False).input_ids for w in askable(world)}

    def __call__(self, scenes, size):
        """Return (B, V) targets that sum to 1."""
        out = torch.zeros(len(scenes), size)
        for row, scene in enumerate(scenes):
            for word in shown(self.world, scene):
                out[row, self.ids.get(word, [])] = 1
        return out / out.sum(1, keepdim=True)


def losses(net, x, rows, true):
    """Return (loss of the answers, loss of the picture's words)."""
    ids, positions, mask, targets = rows
    out = net.model(
        input_ids=ids, pixel_values=x, attention_mask=mask, position_ids=positions, use_cache=False
    )
    at = targets >= 0
    answers = F.cross_entropy(net.lm_head(out.last_hidden_state[at]), targets[at])
    first = out.image_hidden_states[::IMAGE_TOKENS]
    words = net.lm_head(F.rms_norm(first, first.shape[-1:]))
    return answers, F.cross_entropy(words, true)


def run(world, folder, steps=STEPS):
    """Train; write `folder/eyes`, and the same into the exported model."""
    torch.manual_seed(41)
    device = loop.device_of_training()
    tokenizer = build_tokenizer(world)
    net = build(tokenizer, folder / "mini" / "judge").to(device).train()
    icons, stored = Icons.of(world), Stored(folder)
    pack, words = Rows(tokenizer), Words(world, tokenizer)

    def loss_of(seed):
        rng = np.random.default_rng([40, seed])
        x, scenes = pictures_of(world, icons, stored, rng, BATCH)
        rows = pack(*questions_for(world, scenes, rng))
        true = words(scenes, len(tokenizer)).to(device)
        with loop.precision_on(device):
            answers, named = losses(net, x.to(device), [r.to(device) for r in rows], true)
        return answers + 0.3 * named

    loop.train("eyes", {"eyes": net}, loss_of, folder, steps=steps, lr=1.5e-3, hold=0.55, ema=0.995)
    save(net, build_processor(tokenizer), folder / "eyes")
    shutil.copytree(folder / "eyes", folder / "mini" / "eyes", dirs_exist_ok=True)


def save(net, processor, folder):
    """Write the model in float16, to be computed in float32."""
    net.eval().to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(re.sub(r'"float16"', '"float32"', path.read_text()))
    net.float()
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=1) + "\n")
