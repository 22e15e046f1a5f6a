"""What all tests share: no network, one thread, and the real data where it is there."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests.forks import Forks

REAL = Path(os.environ.get("PREFOPT_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _light_collections() -> None:
    """Every run of a trainer ends in a collection, which would walk through all libraries (a third of a second)."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes come first: they are the longest, and the last worker would be waited for."""
    long = {item.path for item in items if "forks" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in long)


def _real(name: str) -> Path:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"the real data {name} is not in {REAL} (set PREFOPT_TEST_DATA to its folder)")
    return path


@pytest.fixture(scope="session")
def hh_path() -> Path:
    """2,312 pairs of HH-RLHF transcripts."""
    return _real("hh-harmless-test.jsonl.gz")


@pytest.fixture(scope="session")
def alpaca_lists_path() -> Path:
    """805 instructions with six scored responses each."""
    return _real("alpaca-eval-lists.jsonl.gz")


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama folder."""
    from tests.small_models import save_text_model

    return save_text_model(tmp_path_factory.mktemp("text-model"))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 text pairs."""
    from tests.small_models import write_pairs

    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny, untrained Stable Diffusion pipeline folder."""
    from prefopt.worlds.shapes.pipelines import tiny_pipeline

    folder = tmp_path_factory.mktemp("image-model")
    tiny_pipeline("sd").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 pairs of pictures."""
    import json

    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("image-pairs")
    g = np.random.default_rng(0)
    rows = []
    for i in range(8):
        names = [f"{i}-{side}.png" for side in ("a", "b")]
        for name in names:
            Image.fromarray(g.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / name)
        rows.append({"prompt": "a red circle in the upper left", "chosen": names[0], "rejected": names[1]})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "pairs.jsonl"


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Iterator[Forks]:
    """Commands and functions in processes of their own (`tests/forks.py`)."""
    started = Forks(tmp_path_factory.mktemp("forks"))
    yield started
    started.close()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a user's machine has cached is read, nothing is left on it."""
    os.environ["PREFOPT_CACHE"] = str(tmp_path_factory.getbasetemp() / "prefopt-cache")


@pytest.fixture(scope="module", autouse=True)
def _own_methods() -> Iterator[None]:
    """Methods that a test file brings along are unknown to the next one."""
    from prefopt.methods import load_all
    from prefopt.objectives.method import METHODS

    load_all()
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Words w1..w60 by number; <s>, </s> and <pad> beside them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i + 3 for i in range(1, 61)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
