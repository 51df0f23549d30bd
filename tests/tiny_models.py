"""Tiny random CLIP, SigLIP and SigLIP 2 models, as folders that a hub would hold."""

from __future__ import annotations

from pathlib import Path

FAMILIES = ("clip", "siglip", "siglip2")
TOKENS = 24
TOWER = {"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def make_folder(family: str, folder: Path, seed: int = 0) -> Path:
    """Writes a tiny random model of a family with a tokenizer of single letters, as save_pretrained does."""
    import torch
    import transformers as tf

    torch.manual_seed(seed)
    letters = [chr(c) for c in range(33, 127)]
    text = {**TOWER, "max_position_embeddings": TOKENS}
    vision = {**TOWER, "patch_size": 16}
    if family == "clip":
        special = {"<|startoftext|>": 0, "<|endoftext|>": 1}
        vocabulary = {t: i for i, t in enumerate([*special, *letters, *(c + "</w>" for c in letters)])}
        tokenizer = tf.CLIPTokenizer(vocab=vocabulary, merges=[])
        text |= {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        config = tf.CLIPConfig(text_config=text, vision_config={**vision, "image_size": 48}, projection_dim=24)
        model = tf.CLIPModel(config)
        processor = tf.CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    else:
        pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters]
        tokenizer = tf.Siglip2Tokenizer(vocab={t: i for i, t in enumerate(pieces)}, merges=[])
        text |= {"vocab_size": len(pieces), "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
        if family == "siglip":
            config = tf.SiglipConfig(text_config=text, vision_config={**vision, "image_size": 48})
            model = tf.SiglipModel(config)
            processor = tf.SiglipImageProcessor(size={"height": 48, "width": 48})
        else:
            config = tf.Siglip2Config(text_config=text, vision_config={**vision, "num_patches": 9})
            model = tf.Siglip2Model(config)
            processor = tf.Siglip2ImageProcessor(patch_size=16, max_num_patches=9)
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder
