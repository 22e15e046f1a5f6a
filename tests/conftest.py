"""What all tests share: no network, one thread, and the real data where it is there."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

REAL = Path(os.environ.get("PREFOPT_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


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
