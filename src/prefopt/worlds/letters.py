"""What the small worlds of letters share: a tokenizer with one token a letter, a small GPT-2, samples, labels.

A letter is a word: `abca` is four tokens, and texts put side by side are tokens put side by side. The models are of
the plain library's format and fit on a page; a world takes seconds to build and a training step milliseconds.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefopt.errors import PrefoptError
from prefopt.rollout.text import Sample, Sampling, generate

Truth = Callable[[Sequence[str], Sequence[str]], list[float]]
Rows = list[dict[str, Any]]
END, BOS, PAD = "<end>", "<start>", "<pad>"
SAMPLES_AT_ONCE = 1024
CONSTANT, RULED_OUT = 8.0, -10.0  # what the head reads in its first place, and the weight on it of what never comes


@contextmanager
def one_thread(seed: int) -> Iterator[None]:
    """Sums in floating point depend on the number of threads; on one, a build is equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def letter_tokenizer(vocabulary: Sequence[str], *, length: int) -> PreTrainedTokenizerFast:
    """One token for each entry, numbered in order; END must be there, BOS is added in front if it is, as is PAD."""
    ids = {entry: i for i, entry in enumerate(vocabulary)}
    inner = Tokenizer(models.WordLevel(ids))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    if BOS in ids:
        inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=END,
        pad_token=PAD if PAD in ids else END,
        bos_token=BOS if BOS in ids else None,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Size:
    """Of a pre-norm transformer with learned positions, ReLU, an untied head and no dropout."""

    hidden: int
    layers: int
    heads: int
    inner: int


def new_model(tokenizer: PreTrainedTokenizerFast, size: Size) -> GPT2LMHeadModel:
    """An untrained model; draws its weights from torch's global generator, matrices as `torch.nn.Linear` does."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=tokenizer.model_max_length,
        n_embd=size.hidden,
        n_layer=size.layers,
        n_head=size.heads,
        n_inner=size.inner,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        **special,
    )
    model = GPT2LMHeadModel(config)
    for name, p in model.named_parameters():
        if p.ndim == 2 and "wte" not in name and "wpe" not in name:
            inputs = p.shape[1] if name == "lm_head.weight" else p.shape[0]  # GPT-2 keeps the others transposed
            torch.nn.init.uniform_(p, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        elif p.ndim == 2:
            torch.nn.init.normal_(p)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **special)
    return model


@torch.no_grad()
def rule_out(model: GPT2LMHeadModel, tokens: Sequence[int]) -> None:
    """Tokens that never come: the head reads a constant in its first place (in effect it has a bias), and they hang on
    that alone."""
    norm, head = model.transformer.ln_f, model.lm_head.weight
    norm.weight[0], norm.bias[0] = 0.0, CONSTANT
    head[:, 0] = 0.0
    head[list(tokens)] = 0.0
    head[list(tokens), 0] = RULED_OUT


def fit(model: GPT2LMHeadModel, batches: Iterable[tuple[Tensor, Tensor]], *, learning_rate: float) -> float:
    """Maximum likelihood with AdamW; a batch is token ids [B, T] and a mask of those scored [B, T].

    Returns the mean loss (nats per token) of the last tenth of the steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    model.train()
    for ids, scored in batches:
        logits = model(input_ids=ids[:, :-1]).logits
        at = scored[:, 1:]
        loss = F.cross_entropy(logits[at], ids[:, 1:][at])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return round(sum(last) / len(last), 6)


def answers(
    model: torch.nn.Module, tokenizer: Any, prompts: Sequence[str], each: int, tokens: int, seed: int
) -> list[list[Sample]]:
    """`each` plain samples (temperature 1) of at most `tokens` tokens to every prompt."""
    sampling = Sampling(max_new_tokens=tokens, n=each, seed=seed, batch_size=SAMPLES_AT_ONCE)
    return generate(model, tokenizer, prompts, sampling, progress=False)


@dataclass(frozen=True)
class Judge:
    """Who labels pairs: Bradley-Terry on `score` with log-odds `sharpness` * lead + `length_bonus` * letters more.

    sharpness     infinite: the higher score always wins, equal ones by a coin
    label_noise   for each annotator the probability that its label is flipped
    """

    score: Truth
    sharpness: float
    label_noise: tuple[float, ...]
    length_bonus: float = 0.0

    def __post_init__(self) -> None:
        if not (self.sharpness >= 0 and math.isfinite(self.length_bonus)):
            raise PrefoptError(f"sharpness {self.sharpness} must be >= 0, length_bonus {self.length_bonus} finite")
        if not self.label_noise or not all(0 <= rate <= 1 for rate in self.label_noise):
            raise PrefoptError(f"label_noise {self.label_noise}: give a rate in [0, 1], or one for each annotator")

    def first_wins(self, lead: float, longer: int, annotator: int, rng: random.Random) -> bool:
        if math.isinf(self.sharpness):
            odds = 0.0 if lead == 0 else math.copysign(50.0, lead)
        else:
            odds = self.sharpness * lead + self.length_bonus * longer
        wins = rng.random() < 1 / (1 + math.exp(-max(-50.0, min(50.0, odds))))
        return wins != (rng.random() < self.label_noise[annotator])

    def pairs(self, prompts: Sequence[str], sides: Iterable[Sequence[str]], rng: random.Random, ties: bool) -> Rows:
        """A row for each two different answers, of different scores unless `ties`; `annotator` where there are two."""
        rows: Rows = []
        for prompt, (a, b) in zip(prompts, sides, strict=True):
            annotator = rng.randrange(len(self.label_noise))
            scores = self.score([prompt] * 2, [a, b])
            if a == b or not (a and b) or (not ties and scores[0] == scores[1]):
                continue
            first = self.first_wins(scores[0] - scores[1], len(a) - len(b), annotator, rng)
            (chosen, high), (rejected, low) = zip((a, b) if first else (b, a), scores if first else scores[::-1])
            row: dict[str, Any] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            row |= {"chosen_score": high, "rejected_score": low}
            rows.append(row | ({"annotator": annotator} if len(self.label_noise) > 1 else {}))
        return rows


def rates(label_noise: float | Sequence[float]) -> tuple[float, ...]:
    """One rate, or one for each annotator."""
    given = (label_noise,) if isinstance(label_noise, int | float) else label_noise
    return tuple(float(rate) for rate in given)


def first_rows(rows: Rows, count: int, what: str) -> Rows:
    """The first `count` of them. Raises PrefoptError if there are fewer."""
    if len(rows) < count:
        raise PrefoptError(f"only {len(rows)} usable {what} were sampled of {count} wanted; give another seed")
    return rows[:count]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[GPT2LMHeadModel, Any]:
    """A model of letters and its tokenizer, for reading."""
    from transformers import AutoTokenizer

    return GPT2LMHeadModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
