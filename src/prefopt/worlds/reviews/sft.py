"""The model of the reviews world: a tokenizer and a small Llama, fitted to the written corpus."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
WARMUP, DECAY = 20, 0.6  # steps of warm-up; share of the steps over which the rates fall to zero
MATRIX_RATE, OTHER_RATE = 0.02, 0.005


@dataclass(frozen=True)
class Size:
    """How big the model and the data are. See `make.SIZES`."""

    hidden: int
    layers: int
    steps: int
    batch: int
    vocabulary: int
    sharpness: float
    pairs: int
    heldout: int
    prompts: int
    lists: int
    demonstrations: int


def fit_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE as Llama 3 has it (BOS added, EOS left to the data), of at most `vocabulary` entries."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, BOS, EOS], initial_alphabet=sorted(alphabet), show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, inner.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=256
    )


def new_model(tokenizer: PreTrainedTokenizerFast, size: Size) -> LlamaForCausalLM:
    """An untrained Llama of this size; draws its weights from torch's global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, prompts: list[str], reviews: list[str]) -> list[tuple[list[int], int]]:
    """For each pair of texts the ids fed to the model, with EOS, and the number of ids of the prompt."""
    heads = tokenizer(prompts).input_ids
    tails = tokenizer(reviews, add_special_tokens=False).input_ids
    return [(head + tail + [tokenizer.eos_token_id], len(head)) for head, tail in zip(heads, tails, strict=True)]


def fit(
    model: LlamaForCausalLM, rows: list[tuple[list[int], int]], size: Size, rng: random.Random, progress: bool
) -> float:
    """Maximum likelihood of the reviews given their prompts; returns the mean loss of the last tenth of the steps.

    Muon for the matrices and AdamW for the rest: in 400 steps the model copies title and genre from the prompt, which
    AdamW alone had not begun to do after 300. The final norm is then scaled by `sharpness`, so that plain sampling at
    temperature 1 draws what the unscaled model would at 1 / sharpness: a model trained for half a minute has a noisy
    tail, and without this one sentence in twenty has a wrong word.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.9, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, size.steps)) for o in optimizers]
    batches = _batches(rows, size.batch, rng)
    losses = []
    model.train()
    for _ in tqdm(range(size.steps), desc="reviews: training the model", disable=not progress):
        loss = _loss(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(size.sharpness)
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The plain library's folder; `generate` then samples at temperature 1."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def _batches(rows: list[tuple[list[int], int]], batch: int, rng: random.Random) -> Iterator[list]:
    """Endless batches of rows of similar length, which wastes little on padding."""
    order = list(range(len(rows)))
    while True:
        rng.shuffle(order)
        for start in range(0, len(order) - batch + 1, 8 * batch):
            chunk = sorted(order[start : start + 8 * batch], key=lambda i: len(rows[i][0]))
            parts = [chunk[at : at + batch] for at in range(0, len(chunk), batch)]
            rng.shuffle(parts)
            yield from ([rows[i] for i in part] for part in parts)


def _loss(model: LlamaForCausalLM, rows: list[tuple[list[int], int]]) -> torch.Tensor:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    scored = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (tokens, prompt) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        scored[row, prompt : len(tokens)] = True
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # padding is on the right: causal attention hides it
    at = scored[:, 1:]
    return F.cross_entropy(model.lm_head(hidden[at]), ids[:, 1:][at])
