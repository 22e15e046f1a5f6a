"""Two processes (gloo) make the run of one, weights and logs, with an uneven last step: every kind of image run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.forks import Forks
from tests.training.image_processes import RUNS, main, write


def weights(folder: Path) -> dict[str, Tensor]:
    """All that a run or a model folder holds."""
    files = sorted(p.relative_to(folder) for p in folder.rglob("*.safetensors"))
    return {f"{file}/{name}": x for file in files for name, x in load_file(folder / file).items()}


def logs(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_two_processes_are_one(forks: Forks, tmp_path: Path) -> None:
    write(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    module = "tests.training.image_processes:main"
    done = forks.run(call=module, arguments=(tmp_path, two, 1), processes=2, cache=str(tmp_path / "cache"))
    assert done.code == 0, done.stderr[-3000:]
    main(str(tmp_path), str(one), "2")
    for name, sections in RUNS.items():
        found = weights(two / name)
        torch.testing.assert_close(found, weights(one / name), rtol=1e-4, atol=2e-6, msg=lambda m: f"{name}: {m}")
        start = weights(tmp_path / sections.get("model", {}).get("path", "sd"))
        gaps = [(x - start.get(key, 0)).abs().max() for key, x in found.items()]
        assert max(gaps) > 1e-4, name  # far more than the tolerance
        rows = logs(one / name), logs(two / name)
        assert [len(r) for r in rows] == [4, 4], name  # three pairs in steps of two, twice
        for a, b in zip(*rows, strict=True):
            assert a["grad_norm"] > 0, name
            for key in ("loss", "grad_norm"):
                assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-5), (name, key)
