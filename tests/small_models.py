"""Model folders and data files of the command-line tests: real formats, a second to make."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NOUNS = ["film", "plot", "scene", "actor", "story", "ending", "camera", "music", "script", "hero"]
ADJECTIVES = ["great", "dull", "bright", "slow", "clever", "weak", "lovely", "poor", "warm", "cold"]


def sentence(g: random.Random) -> str:
    return f"The {g.choice(NOUNS)} is {g.choice(ADJECTIVES)} and the {g.choice(NOUNS)} is {g.choice(ADJECTIVES)}."


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 entries with BOS, EOS and padding."""
    g = random.Random(0)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator((sentence(g) for _ in range(200)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def save_text_model(folder: Path, **changes: object) -> Path:
    """A Llama of 30,000 parameters with its tokenizer, as plain transformers saves it."""
    words = tokenizer()
    torch.manual_seed(0)
    settings: dict = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(settings | changes))).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_pairs(path: Path, n: int = 24, **columns: object) -> Path:
    """Pairs in TRL's layout; further columns as given."""
    g = random.Random(1)
    rows = [
        {
            "prompt": f"Tell me about the {g.choice(NOUNS)}: ",
            "chosen": sentence(g),
            "rejected": sentence(g) + " " + sentence(g),
        }
        | columns
        for _ in range(n)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def run_config(text_model: Path, pairs_file: Path, tmp_path: Path, **sections: Any) -> Any:
    """DPO on a model and pairs, with other sections laid over."""
    from prefopt.config import make

    content = {"method": "dpo", "model": str(text_model), "data": str(pairs_file), "output": str(tmp_path / "run")}
    return make(content | sections)
