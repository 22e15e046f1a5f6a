"""The world of opposite tastes: what its truth reads is what was drawn, and choices follow it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from prefopt import PrefoptError
from prefopt.models.user_encoders import Shot
from prefopt.worlds import tastes
from prefopt.worlds.tastes import building
from prefopt.worlds.tastes.truth import RANGES, drawn, place_of


def test_the_truth_reads_what_was_drawn():
    rng = np.random.default_rng(0)
    asked = rng.uniform(*np.array(list(RANGES.values())).T, size=(60, 3))
    texts = [tastes.captions()[i % 4] for i in range(60)]
    images = [Image.fromarray(tastes.blob(place_of(t), *x, rng)) for t, x in zip(texts, asked, strict=True)]
    found = tastes.features(texts, images)
    for column in range(3):
        assert np.corrcoef(found[:, column], asked[:, column])[0, 1] > 0.97
    h = np.array([0.6, 0.0, -0.8])
    np.testing.assert_allclose(tastes.liking(h, texts, images), 0.6 * found[:, 0] - 0.8 * found[:, 2])
    np.testing.assert_allclose(tastes.liking(-h, texts, images), [-x for x in tastes.liking(h, texts, images)])


def test_features_have_mean_0_and_deviation_1_over_the_world():
    rng = np.random.default_rng(1)
    texts = tastes.captions() * 100
    found = tastes.features(texts, [drawn(t, rng) for t in texts])
    assert np.abs(found.mean(0)).max() < 0.15
    assert np.abs(found.std(0) - 1).max() < 0.15


def test_choices_follow_the_taste_and_some_are_turned_round(tmp_path):
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((4 * building.POOL, 3))
    users = building._users(3, "user", rng)
    assert np.allclose(users["user01a"], -np.asarray(users["user01b"]))
    building._choices(tmp_path / "rows.jsonl", users, 200, 0.1, seen, rng)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    right = []
    for row in rows:
        w, l = (int(row[side][7:11]) for side in ("chosen", "rejected"))
        assert w != l and w // building.POOL == l // building.POOL == tastes.captions().index(row["prompt"])
        right.append((seen[w] - seen[l]) @ users[row["user"]] > 0)
    assert len(rows) == 1200
    assert np.mean(right) == pytest.approx(0.9, abs=0.03)


def test_embeddings_show_the_taste():
    rng = np.random.default_rng(0)

    def of(taste):
        shots = []
        for _ in range(4):
            text = tastes.captions()[int(rng.integers(4))]
            pair = sorted((drawn(text, rng) for _ in range(2)), key=lambda x: tastes.liking(taste, [text], [x])[0])
            shots.append(Shot(text, Image.fromarray(pair[1]), Image.fromarray(pair[0])))
        return tastes.encode(shots).ravel()

    one, other = np.array([1.0, 0, 0]), np.array([-1.0, 0, 0])
    near = np.mean([np.linalg.norm(of(one) - of(one)) for _ in range(20)])
    far = np.mean([np.linalg.norm(of(one) - of(other)) for _ in range(20)])
    assert far > 1.3 * near


def test_latents_are_centred_and_give_the_pixels_back():
    rng = np.random.default_rng(0)
    pictures = np.stack([drawn(text, rng) for text in tastes.captions() * 50])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    pipeline = building.tiny_pipeline()
    pipeline.vae.requires_grad_(False)
    latents = pipeline.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(latents, building.GAIN * pixels + building.OFFSET)
    assert abs(float(latents.mean())) < 0.1 and 0.4 < float(latents.std()) < 1
    torch.testing.assert_close(pipeline.vae.decode(latents).sample, pixels)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_a_tiny_pipeline_draws_colours_and_bad_settings_are_refused():
    pipeline = building.tiny_pipeline()
    image = pipeline(["a blob in the upper left"], num_inference_steps=1, guidance_scale=1.0).images[0]
    assert image.size == (8, 8)
    pixels = np.asarray(image).reshape(-1, 3)
    assert not np.array_equal(pixels[:, 0], pixels[:, 2])
    for wrong in ({"couples": 0}, {"pairs": 0}, {"wrong": 1.5}):
        with pytest.raises(PrefoptError):
            tastes.build(**wrong)
    with pytest.raises(PrefoptError, match="no caption of the tastes world"):
        place_of("a red circle")
    with pytest.raises(PrefoptError, match="8x8"):
        tastes.features(["a blob in the upper left"], [Image.new("RGB", (9, 9))])
