"""Vision-language models of real classes at tiny size, with random weights, saved as folders."""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "user",
    "assistant",
    "system",
    ":",
    "yes",
    "no",
    "fire",
    "burning",
    "a",
    "dog",
    "is",
    "there",
    "picture",
    "what",
    "in",
    "the",
    "of",
    "?",
    ".",
    ",",
    "none",
    "on",
    "with",
    "flames",
    "cat",
]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type=='image' %}IMAGE {% else %}{{ c.text }} {% endif %}"
    "{% endfor %}{% endif %} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokenizer_of(**extra):
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=extra,
    )


def enlarge(model):
    """Multiply random weights: those of the usual size answer every picture alike."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)


def save_llava(folder, seed=0, template=TEMPLATE):
    """Save a LLaVA of 50 thousand parameters."""
    tokenizer = tokenizer_of(image_token="<image>")
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template and template.replace("IMAGE", "<image>"),
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SMALL, image_size=32, patch_size=8, projection_dim=32),
        text_config=LlamaConfig(
            **SMALL, **TOKENS, num_key_value_heads=2, vocab_size=len(tokenizer)
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    enlarge(model)
    # A model's own settings may ask for sampling.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 1.5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_qwen(folder):
    """Save a Qwen2.5-VL, whose published processor wants torchvision; saved by its parts."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = tokenizer_of(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_bos_token="<|vision_start|>",
        vision_eos_token="<|vision_end|>",
    )
    tokenizer.chat_template = TEMPLATE.replace(
        "IMAGE", "<|vision_start|> <|image_pad|> <|vision_end|>"
    )
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in
           ("vision_start", "vision_end", "image_pad", "video_pad")}  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config={
            **SMALL,
            **TOKENS,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
            **{"out_hidden_size": 32, "patch_size": 14, "fullatt_block_indexes": [1]},
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    enlarge(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56).save_pretrained(folder)
    (folder / "processor_config.json").write_text('{"processor_class": "Qwen2_5_VLProcessor"}')
    return folder


def save_smol(folder):
    """Save a SmolVLM, whose published processor wants torchvision; saved by its parts."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    tokenizer = tokenizer_of(
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", "<image>")
    config = SmolVLMConfig(
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        text_config={
            **SMALL,
            **TOKENS,
            "model_type": "llama",
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config)
    enlarge(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = SmolVLMImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    pixels.save_pretrained(folder)
    about = {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
    (folder / "processor_config.json").write_text(json.dumps(about))
    return folder
