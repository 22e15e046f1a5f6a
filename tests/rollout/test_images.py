"""Sampling on equal seeds, and what is made of it."""

import numpy as np
import pytest
from PIL import Image

from prefopt.errors import PrefoptError
from prefopt.evaluation.images import compare_images, diversity
from prefopt.rollout.images import ImageSampling, grid, sample_images
from prefopt.worlds.shapes.pipelines import tiny_pipeline

CAPTION = "a red circle in the upper left"


def flat(value):
    return Image.new("RGB", (4, 4), (value, value, value))


def brightness(prompts, images):
    return [float(np.asarray(i).mean()) for i in images]


def test_a_picture_depends_on_its_seed_and_not_on_its_batch():
    pipeline = tiny_pipeline("sd")
    one = sample_images(pipeline, [CAPTION] * 3, [5, 6, 5], ImageSampling(2, 1.0, 3), progress=False)
    two = sample_images(pipeline, [CAPTION] * 3, [5, 6, 5], ImageSampling(2, 1.0, 1), progress=False)
    pixels = [np.asarray(i, dtype=int) for i in one]
    assert (pixels[0] == pixels[2]).all()
    assert (pixels[0] != pixels[1]).any()
    assert max(abs(a - np.asarray(b, dtype=int)).max() for a, b in zip(pixels, two, strict=True)) <= 1  # rounding


def test_bad_sampling_is_refused():
    with pytest.raises(PrefoptError, match="1 prompts and 2 seeds"):
        sample_images(None, [CAPTION], [1, 2])
    with pytest.raises(PrefoptError, match="steps"):
        ImageSampling(steps=0)


def test_a_grid_holds_every_picture_in_its_place():
    made = np.asarray(grid([[flat(0), flat(50)], [flat(100)]], scale=2, gap=2))
    assert made.shape == (18, 18, 3)
    assert made[0, 0, 0] == 0
    assert made[0, 17, 0] == 50
    assert made[17, 0, 0] == 100
    assert made[0, 8, 0] == made[17, 17, 0] == 255


def test_comparison_counts_wins_on_equal_seeds_by_prompt():
    prompts = ["a", "a", "b", "b"]
    found = compare_images(prompts, [flat(v) for v in (10, 10, 10, 10)], [flat(v) for v in (20, 10, 30, 5)], brightness)
    assert found.before.value == 10
    assert found.after.value == pytest.approx(16.25)
    assert found.gain.value == pytest.approx(6.25)
    assert found.gain.n == 2
    assert found.win_rate.value == pytest.approx((0.75 + 0.5) / 2)  # a tie counts a half
    assert set(found.to_json()) >= {"before", "after", "gain", "win_rate"}
    with pytest.raises(PrefoptError, match="no pairs"):
        compare_images(prompts, [flat(0)], [flat(0)], brightness)


def test_diversity_is_the_distance_inside_a_prompt():
    found = diversity([flat(0), flat(51), flat(7)], [0, 0, 1])
    assert found.value == pytest.approx(0.2)
    assert found.n == 1
    assert sum(found.dropped.values()) == 1
