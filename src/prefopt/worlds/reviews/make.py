"""Build the reviews world: a model that has read the corpus, its samples, and their labels."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from prefopt.errors import PrefoptError
from prefopt.worlds.cache import World, build_once, folder_once
from prefopt.worlds.reviews import truth
from prefopt.worlds.reviews.corpus import Film, films, review
from prefopt.worlds.reviews.grammar import RULES
from prefopt.worlds.reviews.labels import Dials, first_wins, utilities
from prefopt.worlds.reviews.sample import sample
from prefopt.worlds.reviews.sft import Size, encode, fit, fit_tokenizer, new_model, save

VERSION = "2"  # raise it whenever the built files change
# Sums in floating point depend on the number of threads: a fixed number makes builds equal bit for bit.
THREADS = {"full": 2, "tiny": 1}
SPARE = {"train": 1.04, "heldout": 1.2}  # more pairs are sampled than needed: some are of equal answers
HELDOUT_TITLES = 0.2

SIZES = {
    "full": Size(160, 2, 400, 32, 1280, 1.2, pairs=2048, heldout=512, prompts=256, lists=384, demonstrations=4096),
    "tiny": Size(96, 1, 130, 24, 1280, 1.4, pairs=128, heldout=32, prompts=32, lists=24, demonstrations=128),
}

Rows = list[dict[str, Any]]


def build(
    cache: Path | str | None = None,
    *,
    label_noise: float | Sequence[float] = 0.0,
    annotator_groups: int | Sequence[str] = 1,
    length_bias: float = 0.0,
    temperature: float = 0.1,
    seed: int = 0,
    size: str = "full",
    progress: bool = True,
) -> World:
    """The reviews world, from the cache or built: about a minute on two cores, a few seconds for `size="tiny"`.

    label_noise       probability that a label of `train` and `unpaired` is flipped; one rate, or one per group
    annotator_groups  number of groups with tastes of their own (the first is the headline reward), or their names from
                      `labels.TASTES`; the same name may come again, as for annotators who differ in reliability only.
                      With two or more groups the pairs carry a column `annotator`, 0, 1, ...
    length_bias       log-odds per word by which the longer answer is preferred in `train`
    temperature       of the Bradley-Terry labels of `train`: log-odds = difference in utility (in [0, 1]) / temperature
    size              "full", or "tiny" for tests of the plumbing (its samples are not good English)

    `train`: both answers are samples of the model at temperature 1. `chosen_score` and `rejected_score` are the true
    utilities for the pair's annotator (the headline reward for one group), so that with noise or at a temperature
    above 0 the chosen score is not always the higher. `heldout` is labelled by the truth alone. Titles of `heldout` and
    `prompts` occur nowhere else. `unpaired` holds one answer per train prompt, with label true by a chance of
    sigmoid((reward - median) / temperature). `lists` scores 4 to 6 answers by the headline reward, `objectives` the
    same answers by each objective.

    The dials do not touch the model: worlds of one seed and size share model and samples, and only the first takes
    long. Same arguments, same bytes, on machines of one kind with the same torch. Raises PrefoptError.
    """
    if size not in SIZES:
        raise PrefoptError(f"size '{size}' of the reviews world: give one of {', '.join(SIZES)}")
    dials = Dials.of(annotator_groups, label_noise, length_bias, temperature)
    common = {"seed": seed, "size": size}
    base = folder_once(
        "reviews-base",
        version=VERSION,
        settings=common,
        make=lambda folder: _make_base(folder, size, seed, progress),
        cache=cache,
    )
    return build_once(
        "reviews",
        version=VERSION,
        settings={**common, **json.loads(json.dumps(asdict(dials)))},
        make=lambda folder: _make_labelled(folder, base, SIZES[size], dials, seed),
        cache=cache,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The model and its samples


def _make_base(folder: Path, size: str, seed: int, progress: bool) -> Mapping[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS[size])
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _model_and_samples(folder, SIZES[size], seed, progress)
    finally:
        torch.set_num_threads(threads)


def _model_and_samples(folder: Path, size: Size, seed: int, progress: bool) -> Mapping[str, Any]:
    rng = random.Random(f"reviews {seed}")  # noqa: S311
    seen, unseen = split_titles(rng)
    corpus = films(rng, size.batch * size.steps, seen)
    reviews = [review(rng, film) for film in corpus]
    prompts = [film.prompt for film in corpus]
    tokenizer = fit_tokenizer([a + b for a, b in zip(prompts[:6000], reviews, strict=False)], size.vocabulary)
    model = new_model(tokenizer, size)
    loss = fit(model, encode(tokenizer, prompts, reviews), size, rng, progress)
    save(model, tokenizer, folder / "model")

    asked, copies = _asked(rng, size, seen, unseen)
    flat = [film.prompt for film, count in zip(asked, copies, strict=True) for _ in range(count)]
    answers = iter(sample(model, tokenizer, flat, torch.Generator().manual_seed(seed), progress=progress))
    groups = [{"prompt": f.prompt, "responses": [next(answers) for _ in range(n)]} for f, n in zip(asked, copies)]
    ends = _sections(size)
    parts = {name: groups[start:end] for name, (start, end) in ends.items()}
    for name, rows in parts.items():
        _write(folder / f"samples-{name}.jsonl", rows)
    _write(folder / "prompts.jsonl", [{"prompt": film.prompt} for film in asked[ends["heldout"][1] :]])
    demonstrations = zip(prompts[: size.demonstrations], reviews, strict=False)
    _write(folder / "sft.jsonl", [{"prompt": prompt, "completion": text} for prompt, text in demonstrations])
    return {"parameters": sum(p.numel() for p in model.parameters()), "loss": loss, **_averages(parts["train"])}


def split_titles(rng: random.Random) -> tuple[list[str], list[str]]:
    """Titles that training data may name, and those of held-out data alone."""
    titles = list(RULES["title"])
    rng.shuffle(titles)
    cut = int(len(titles) * HELDOUT_TITLES)
    return titles[cut:], titles[:cut]


def _sections(size: Size) -> dict[str, tuple[int, int]]:
    """Where the films of each part lie among those that `_asked` names."""
    train, lists = int(size.pairs * SPARE["train"]), size.lists
    heldout = int(size.heldout * SPARE["heldout"])
    return {"train": (0, train), "lists": (train, train + lists), "heldout": (train + lists, train + lists + heldout)}


def _asked(rng: random.Random, size: Size, seen: list[str], unseen: list[str]) -> tuple[list[Film], list[int]]:
    """The films to sample reviews of, and how many of each: pairs, lists of 4 to 6, held-out pairs, prompts alone."""
    ends = _sections(size)
    inside = films(rng, ends["lists"][1], seen)
    outside = films(rng, ends["heldout"][1] - ends["heldout"][0] + size.prompts, unseen)
    copies = [2] * ends["train"][1] + [rng.randint(4, 6) for _ in range(size.lists)]
    copies += [2] * (ends["heldout"][1] - ends["heldout"][0]) + [0] * size.prompts
    return inside + outside, copies


def _averages(rows: Rows) -> dict[str, float]:
    prompts = [row["prompt"] for row in rows for _ in row["responses"]]
    responses = [text for row in rows for text in row["responses"]]
    scores = (truth.reward, truth.fluency, truth.length, *truth.OBJECTIVES.values())
    return {f"mean_{score.__name__}": round(fmean(score(prompts, responses)), 6) for score in scores}


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def _make_labelled(folder: Path, base: Path, size: Size, dials: Dials, seed: int) -> Mapping[str, Any]:
    shutil.copytree(base / "model", folder / "model")
    for name in ("prompts.jsonl", "sft.jsonl"):
        shutil.copy(base / name, folder / name)
    samples = {name: _read(base / f"samples-{name}.jsonl") for name in ("train", "heldout", "lists")}
    exact = Dials(dials.tastes, (0.0,) * len(dials.tastes), 0.0, 0.0)
    rng = random.Random(f"labels {seed}")  # noqa: S311
    train = _pairs(samples["train"], dials, rng, size.pairs, ties=True)
    heldout = _pairs(samples["heldout"], exact, rng, size.heldout, ties=False)
    _write(folder / "train.jsonl", train)
    _write(folder / "heldout.jsonl", heldout)
    _write(folder / "unpaired.jsonl", _unpaired(samples["train"][: size.pairs], dials, rng))
    lists = [dict(row, responses=list(dict.fromkeys(row["responses"]))) for row in samples["lists"]]
    lists = [row for row in lists if len(row["responses"]) >= 4] or lists
    _write(folder / "lists.jsonl", ({**row, "scores": _score(truth.reward, row)} for row in lists))
    many = ({**row, "scores": {n: _score(f, row) for n, f in truth.OBJECTIVES.items()}} for row in lists)
    _write(folder / "objectives.jsonl", many)
    facts = json.loads((base / "world.json").read_text(encoding="utf-8"))["facts"]
    agree = fmean(row["chosen_score"] > row["rejected_score"] for row in train)
    return {**facts, "labels_that_agree_with_utility": round(agree, 6)}


def _pairs(rows: Rows, dials: Dials, rng: random.Random, count: int, ties: bool) -> Rows:
    """The first `count` pairs of different answers (and of different utility unless `ties`), with their labels."""
    pairs: Rows = []
    for row in rows:
        annotator = rng.randrange(len(dials.tastes))
        prompt, (a, b) = row["prompt"], row["responses"]
        score_a, score_b = utilities(dials, annotator, [prompt] * 2, [a, b])
        if a == b or not (a and b) or (not ties and score_a == score_b) or len(pairs) == count:
            continue
        words_a, words_b = truth.length([prompt] * 2, [a, b])
        sides = [(a, score_a), (b, score_b)]
        if not first_wins(dials, annotator, score_a - score_b, words_a - words_b, rng):
            sides.reverse()
        (chosen, high), (rejected, low) = sides
        pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "chosen_score": high, "rejected_score": low}
        pairs.append(pair | ({"annotator": annotator} if len(dials.tastes) > 1 else {}))
    return pairs


def _unpaired(rows: Rows, dials: Dials, rng: random.Random) -> Rows:
    rows = [row for row in rows if row["responses"][0]]
    scores = truth.reward([row["prompt"] for row in rows], [row["responses"][0] for row in rows])
    middle = median(scores)
    labels = [first_wins(dials, 0, score - middle, 0.0, rng) for score in scores]
    return [
        {"prompt": row["prompt"], "completion": row["responses"][0], "label": label}
        for row, label in zip(rows, labels, strict=True)
    ]


def _score(score: truth.Reward, row: Mapping[str, Any]) -> list[float]:
    return score([row["prompt"]] * len(row["responses"]), row["responses"])


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read(path: Path) -> Rows:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
