"""The further models of the reviews world: real formats, the tokenizers that they should have, the same bytes again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.worlds.cache import World
from prefopt.worlds.reviews import make
from prefopt.worlds.reviews.starts import build_starts


@pytest.fixture(scope="module")
def starts(cache: Path, tiny_reviews: World) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as here:  # the models are of the tiny world's kind, and read less
        here.setitem(make.SIZES, "tiny", replace(make.SIZES["tiny"], steps=30))
        yield build_starts(cache, size="tiny", progress=False)


def test_three_models_in_the_plain_format(starts: Path, tiny_reviews: World) -> None:
    own = AutoTokenizer.from_pretrained(tiny_reviews.model).get_vocab()
    weights = {}
    for name in ("base", "sft", "source"):
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(starts / name),
            AutoTokenizer.from_pretrained(starts / name),
        )
        assert model.config.vocab_size == len(tokenizer) and model.generation_config.do_sample
        assert (tokenizer.get_vocab() == own) == (name != "source")
        weights[name] = model.model.norm.weight
    assert not weights["base"].equal(weights["sft"])  # saved before training went on


def test_built_once_and_the_same_again(starts: Path, cache: Path, tiny_reviews: World, tmp_path: Path) -> None:
    assert build_starts(cache, size="tiny", progress=False) == starts
    shutil.copytree(tiny_reviews.root, tmp_path / tiny_reviews.root.relative_to(cache))
    again = build_starts(tmp_path, size="tiny", progress=False)
    for name in ("base", "sft", "source"):
        assert (again / name / "model.safetensors").read_bytes() == (starts / name / "model.safetensors").read_bytes()
