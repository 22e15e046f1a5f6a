"""What both tools are given: a model folder and pairs of text, real where the real data is there."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REAL = Path(os.environ.get("PREFOPT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
MAX_LENGTH = 512


class Size(NamedTuple):
    """A Llama's shape."""

    title: str
    vocabulary: int
    hidden: int
    layers: int


SIZES = {
    "head": Size("21 M parameters, 32,000 vocabulary (the head dominates)", 32000, 256, 6),
    "backbone": Size("33 M parameters, 8,000 vocabulary (the backbone dominates)", 8000, 512, 8),
}


def conversations() -> tuple[list[dict[str, str]], str]:
    """Pairs as plain strings (prompt, chosen, rejected) and where they come from."""
    path = REAL / "hh-harmless-test.jsonl.gz"
    if not path.is_file():
        return made_up(1200), "made-up words with the lengths of HH-RLHF (the real pairs are not on this machine)"
    from prefopt.data.config import DataConfig
    from prefopt.data.rule import Ledger
    from prefopt.data.source import read_examples

    rows = []
    for e in read_examples(DataConfig(path=str(path)), [str(path)], Ledger(), needs={"pairs"}):
        prompt = "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in e.prompt)
        better, worse = (" " + e.responses[i][0]["content"].strip() for i in e.pairs[0])
        rows.append({"prompt": prompt + "\n\nAssistant:", "chosen": better, "rejected": worse})
    return rows, "HH-RLHF harmless-base test pairs"


def made_up(n: int) -> list[dict[str, str]]:
    """Lengths as measured on HH-RLHF: mean prompt 126, chosen 41, rejected 53 tokens, each with a long tail."""
    g = random.Random(0)
    words = ["".join(g.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(g.randint(2, 9))) for _ in range(6000)]

    def text(mean: float) -> str:
        return " " + " ".join(g.choices(words, k=max(1, int(g.expovariate(1 / mean)))))

    return [{"prompt": text(100), "chosen": text(33), "rejected": text(43)} for _ in range(n)]


def make_model(folder: Path, size: Size, rows: list[dict[str, str]]) -> None:
    """A model folder as plain transformers saves it: byte-level BPE, Llama, random weights."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator((r[k] for r in rows for k in r), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, rows: list[dict[str, str]], tokenizer: Any, number: int) -> int:
    """The first `number` pairs of which nothing has to be cut (tools cut differently). Returns their tokens, both
    sides with their prompts: the useful work of one pass."""
    kept, tokens = [], 0
    for row in rows:
        prompt, chosen, rejected = (len(tokenizer(row[k])["input_ids"]) for k in ("prompt", "chosen", "rejected"))
        if (
            prompt + max(chosen, rejected) + 1 <= MAX_LENGTH
            and row["chosen"] != row["rejected"]
            and row["chosen"].strip()
        ):
            kept.append(row)
            tokens += 2 * prompt + chosen + rejected + 2
        if len(kept) == number:
            break
    path.write_text("".join(json.dumps(r) + "\n" for r in kept))
    return tokens
