"""Tiny networks of transformers with random weights, saved as the hub's files are."""

import json
from pathlib import Path

import torch

from diffmoe.codec import CONFIG, WEIGHTS

LENGTH = 12  # tokens of a caption
LETTERS = "abcdefghij"


def save_dino(folder: Path, **changes: int) -> Path:
    """A DINOv2 of width 16 whose positions were learned on 56 pixels."""
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = Dinov2Config(**sizes | {"image_size": 56, "patch_size": 14} | changes)
    return _save(Dinov2Model(config), folder)


def save_clip(folder: Path, image_size: int = 224) -> Path:
    """A CLIP that reads captions of single letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {"vocab_size": 30, "max_position_embeddings": LENGTH}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"image_size": image_size, "patch_size": 56}
    config = CLIPConfig(text_config=sizes | text, vision_config=sizes | vision, projection_dim=8)
    _save(CLIPModel(config), folder)
    CLIPTokenizerFast(vocab=vocabulary(), merges=[]).save_pretrained(folder)
    return folder


def save_t5(folder: Path, **changes: int) -> Path:
    """A whole T5 of width 16, decoder included, that reads letters as captions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=30, feed_forward_proj="gated-gelu", **sizes | changes)
    _save(T5ForConditionalGeneration(config), folder)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"{start}{x}", -3.0) for start in ("▁", "") for x in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def in_shards(folder: Path) -> Path:
    """The weights of a folder moved into two files and their list, as those of large networks."""
    from safetensors.torch import load_file, save_file

    state, listed = load_file(folder / WEIGHTS), {}
    for number, names in enumerate((sorted(state)[::2], sorted(state)[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, folder / file, {"format": "pt"})
        listed |= dict.fromkeys(names, file)
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": listed})
    )
    return folder


def vocabulary() -> dict[str, int]:
    """Letters within and at the end of a word."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{x}</w>" for x in LETTERS)]
    return {word: number for number, word in enumerate(words)}


def _save(model: torch.nn.Module, folder: Path) -> Path:
    """Save a model with weights that keep images apart."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in model.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        state[name] = 1 + 0.1 * drawn if name.endswith("norm.weight") else 0.3 * drawn
        if not tensor.is_floating_point():
            state[name] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(model.config.to_dict(), default=str))
    save_file(state, folder / WEIGHTS)
    return folder
