"""The truth of the blobs world against its own drawing, the part that stands for the VAE, and a world built quickly."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from prefopt.errors import PrefoptError
from prefopt.models.diffusion import load_image_model
from prefopt.models.pixels import GreyPixels
from prefopt.rollout.images import sample_images
from prefopt.worlds import blobs
from prefopt.worlds.blobs import building
from prefopt.worlds.blobs.truth import parts


def by_hand(u, row, column):
    """The reward in plain loops: u [8][8], the centre of the quarter."""
    bell = [[np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2.5) for x in range(8)] for y in range(8)]
    top = sum(u[y][x] * bell[y][x] for y in range(8) for x in range(8))
    b = top / sum(g * g for line in bell for g in line)
    rest = sum((u[y][x] - b * bell[y][x]) ** 2 for y in range(8) for x in range(8)) / 64
    return min(b, 1.2) - 5 * rest


@pytest.mark.parametrize(
    ("place", "row", "column"), [("upper left", 1.5, 1.5), ("lower right", 5.5, 5.5), ("upper right", 1.5, 5.5)]
)
def test_the_truth_is_that_of_the_equation(place, row, column):
    picture = blobs.blob(place, 0.7, np.random.default_rng(0))
    u = 1.5 * picture[..., 0] / 255 - 0.2
    assert blobs.reward([blobs.caption(place)], [picture])[0] == pytest.approx(by_hand(u, row, column), abs=1e-9)
    assert blobs.reward([blobs.caption(place)], [Image.fromarray(picture)])[0] == pytest.approx(0.7, abs=0.02)


def test_brighter_is_better_up_to_the_ceiling_and_dirt_is_worse():
    rng = np.random.default_rng(1)
    said = "a blob in the lower left"
    values = [blobs.reward([said], [blobs.blob("lower left", b, rng)])[0] for b in (0.2, 0.6, 1.0, 1.19)]
    assert values == sorted(values)
    assert blobs.reward([said], [blobs.blob("lower left", 1.3, rng, noise=0)])[0] <= blobs.CEILING
    dirty = blobs.reward([said] * 50, [blobs.blob("lower left", 0.6, rng, noise=0.1) for _ in range(50)])
    assert np.mean(dirty) == pytest.approx(0.6 - 5 * 0.1**2, abs=0.02)
    assert blobs.reward([said], [blobs.blob("upper right", 0.6, rng)])[0] < 0.1


def test_pictures_are_read_as_they_were_drawn():
    rng = np.random.default_rng(2)
    assert len(blobs.captions()) == 4 and len(blobs.captions(brightness=True)) == 12
    for name, (low, high) in blobs.LEVELS.items():
        for place in blobs.PLACES:
            picture = blobs.blob(place, (low + high) / 2, rng)
            assert blobs.read(picture) == blobs.caption(place)
            assert blobs.read(picture, brightness=True) == blobs.caption(place, name)


def test_what_it_cannot_judge_is_refused():
    with pytest.raises(PrefoptError, match="no caption of the blobs world"):
        blobs.reward(["a cat"], [blobs.blob("upper left", 1, np.random.default_rng(0))])
    with pytest.raises(PrefoptError, match="8x8"):
        blobs.reward(["a blob in the upper left"], [Image.new("RGB", (16, 16))])
    with pytest.raises(PrefoptError, match="2 prompts for 1 images"):
        parts(["a", "b"], [None])
    with pytest.raises(PrefoptError, match="temperature"):
        blobs.build(temperature=-1)
    with pytest.raises(PrefoptError, match="wrong"):
        blobs.build(wrong=2)


def test_pixels_become_latents_and_back():
    part = GreyPixels()
    pixels = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8).mean(1, keepdim=True).expand(1, 3, 8, 8)
    posterior = part.encode(pixels).latent_dist
    grey = (pixels[:, :1] + 1) / 2
    torch.testing.assert_close(posterior.mean, 2 * (1.5 * grey - 0.2) - 0.5)  # 2u - 0.5
    assert float(posterior.std.max()) == 0
    torch.testing.assert_close(part.decode(posterior.mode()).sample, pixels)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"STEPS": 3, "DRAWN": 64, "HELD_OUT": 8, "LISTS": 4}.items():
            patch.setattr(building, name, value)
        yield blobs.build(tmp_path_factory.mktemp("cache"), pairs=200, brightness=True, wrong=0.25, progress=False)


def test_a_world_is_a_pipeline_and_labelled_pairs(world):
    model = load_image_model(world.model)
    assert (model.kind, model.resolution, model.schedule.prediction) == ("sd", 8, "epsilon")
    assert sample_images(model.pipeline, ["a dim blob in the upper left"], [0], building.SAMPLING)[0].size == (8, 8)
    rows = [json.loads(line) for line in world.train.read_text().splitlines()]
    assert len(rows) == 200 and len({row["prompt"] for row in rows}) == 12
    for row in rows[:20]:
        for side in ("chosen", "rejected"):
            seen = blobs.reward([row["prompt"]], [Image.open(world.root / row[side])])[0]
            assert seen == pytest.approx(row[f"{side}_score"], abs=1e-3)
    wrong = np.mean([row["chosen_score"] < row["rejected_score"] for row in rows])
    assert world.facts["flipped"] == pytest.approx(wrong)
    assert 0 < wrong < 0.5
    assert all(
        r["chosen_score"] >= r["rejected_score"] for r in map(json.loads, world.heldout.read_text().splitlines())
    )
    lists = [json.loads(line) for line in world.lists.read_text().splitlines()]
    assert all(len(row["responses"]) == len(row["scores"]) == 4 for row in lists)


def test_worlds_of_other_labels_share_the_model(world):
    other = blobs.build(world.root.parent, pairs=4, temperature=0, brightness=True, wrong=0.25, progress=False)
    assert len(list(world.root.parent.glob("blobs-model-*.lock"))) == 1
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    assert (other.root / weights).read_bytes() == (world.root / weights).read_bytes()
    assert other.facts["flipped"] == 0
