"""`prefopt generate` for pipelines: prompt files, seeds, grids, several scorers, and going on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prefopt.data.config import DataConfig
from prefopt.errors import PrefoptError
from prefopt.rollout import verb
from prefopt.rollout.images import ImageSampling
from prefopt.rollout.verb import generate_images

SAMPLING = ImageSampling(steps=1, guidance=1.0, batch_size=4)
FILE = """
import numpy as np
def light(prompts, images):
    return [float(np.asarray(i).mean()) for i in images]
def red(prompts, images):
    return [float(np.asarray(i)[..., 0].mean()) for i in images]
"""


@pytest.fixture
def prompts(tmp_path: Path) -> DataConfig:
    (tmp_path / "prompts.txt").write_text("a red circle\n\ntwo blue squares\na green triangle\na yellow circle\n")
    (tmp_path / "taste.py").write_text(FILE)
    return DataConfig(path=str(tmp_path / "prompts.txt"))  # type: ignore[call-arg]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]


def test_several_scorers_grid_and_seeds(prompts: DataConfig, image_model: Path, tmp_path: Path) -> None:
    specs = [f"{tmp_path / 'taste.py'}:{name}" for name in ("light", "red")]
    count = generate_images(str(image_model), prompts, tmp_path / "out", 2, 7, SAMPLING, specs, shown=3)
    made = rows(tmp_path / "out")
    assert count == len(made) == 4
    assert [r["seeds"] for r in made] == [[7, 8], [9, 10], [11, 12], [13, 14]]
    images = [[np.asarray(Image.open(tmp_path / "out" / f)) for f in r["responses"]] for r in made]
    for row, pictures in zip(made, images, strict=True):
        assert row["reward_scores"] == [[p.mean(), p[..., 0].mean()] for p in pictures]
        assert row["scores"] == {spec: [r[n] for r in row["reward_scores"]] for n, spec in enumerate(specs)}
    grid = Image.open(tmp_path / "out" / "grid.png")
    assert grid.width < grid.height  # three rows of two
    one = generate_images(str(image_model), prompts, tmp_path / "one", 1, 8, SAMPLING, specs[:1])
    assert one == 4
    assert rows(tmp_path / "one")[0]["scores"] == [images[0][1].mean()]  # seed 8 is the same picture
    assert not (tmp_path / "one" / "grid.png").exists()


def test_a_stopped_job_goes_on_in_whole_chunks(
    prompts: DataConfig, image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args: tuple[Any, ...] = (str(image_model), prompts)
    generate_images(*args, tmp_path / "whole", 1, 0, ImageSampling(1, 1.0, 2))
    sample, calls = verb.sample_images, []

    def stopped(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*given, **more)

    monkeypatch.setattr(verb, "sample_images", stopped)
    with pytest.raises(KeyboardInterrupt):
        generate_images(*args, tmp_path / "cut", 1, 0, ImageSampling(1, 1.0, 2))
    with (tmp_path / "cut" / "images.jsonl").open("a") as file:
        file.write('{"prompt": "half a li')  # what a kill may leave
    assert generate_images(*args, tmp_path / "cut", 1, 0, ImageSampling(1, 1.0, 2)) == 2
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    for row in rows(tmp_path / "whole"):
        one, two = (np.asarray(Image.open(tmp_path / x / row["responses"][0])) for x in ("whole", "cut"))
        assert (one == two).all()
    with pytest.raises(PrefoptError, match="another job"):
        generate_images(*args, tmp_path / "cut", 1, 1, ImageSampling(1, 1.0, 2))


def test_a_start_that_failed_leaves_its_folder_free(prompts: DataConfig, image_model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f(prompts, images): return []\n")
    with pytest.raises(PrefoptError, match="returned 0 values"):
        generate_images(str(image_model), prompts, tmp_path / "out", 1, 0, SAMPLING, [f"{bad}:f"])
    good = f"{tmp_path / 'taste.py'}:light"
    assert generate_images(str(image_model), prompts, tmp_path / "out", 1, 0, SAMPLING, [good]) == 4
    with pytest.raises(PrefoptError, match="samples of another job"):
        generate_images(str(image_model), prompts, tmp_path / "out", 1, 1, SAMPLING, [good])
