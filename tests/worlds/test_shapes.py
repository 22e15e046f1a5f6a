"""The truth of the shapes world against its renderer, its tokenizer, and worlds built with little effort."""

import json

import numpy as np
import pytest
from PIL import Image

from prefopt.errors import PrefoptError
from prefopt.worlds import shapes
from prefopt.worlds.shapes import building
from prefopt.worlds.shapes.pipelines import TOKENS, word_tokenizer
from prefopt.worlds.shapes.render import COLOURS, ONE, SHAPES, TWO, Scene, render, scenes
from prefopt.worlds.shapes.truth import parse


def picture(scene, seed=0):
    return render(scene, np.random.default_rng(seed))


def judged(caption, image):
    return {name: values[0] for name, values in shapes.parts([caption], [image]).items()}


def test_captions_and_scenes_are_one_to_one():
    all_ = scenes()
    assert len(all_) == 96
    assert len({s.caption for s in all_}) == 96
    assert all(parse(s.caption) == s for s in all_)
    assert Scene("red", "circle", (0,)).caption == "a red circle in the upper left"
    assert Scene("blue", "square", (1, 3)).caption == "two blue squares on the right"


@pytest.mark.parametrize(
    "text", ["", "a dog", "a pink circle in the upper left", "two red circles in the upper left corner"]
)
def test_other_captions_are_refused(text):
    with pytest.raises(PrefoptError, match="no caption of the shapes world"):
        parse(text)


def test_the_renderers_pictures_are_right():
    all_ = [s for s in scenes() for _ in range(3)]
    images = [picture(s, n) for n, s in enumerate(all_)]
    found = shapes.parts([s.caption for s in all_], images)
    for name, values in found.items():
        assert min(values) > 0.99, name
    assert min(shapes.reward([s.caption for s in all_], images)) > 0.99


@pytest.mark.parametrize("wrong", ["colour", "shape", "place", "count"])
def test_each_objective_sees_its_own_mistake(wrong):
    truth = Scene("red", "triangle", (0,))
    told = {
        "colour": Scene("blue", "triangle", (0,)),
        "shape": Scene("red", "circle", (0,)),
        "place": Scene("red", "triangle", (3,)),
        "count": Scene("red", "triangle", (0, 1)),
    }[wrong]
    found = judged(told.caption, picture(truth))
    assert found[wrong] < 0.55
    others = [v for name, v in found.items() if name != wrong and {name, wrong} != {"place", "count"}]
    assert min(others) > 0.99
    assert (
        shapes.reward([told.caption], [picture(truth)])[0] < shapes.reward([truth.caption], [picture(truth)])[0] - 0.1
    )


def test_credit_is_partial():
    scene = Scene("green", "square", (0, 1))
    half = judged(scene.caption, picture(Scene("green", "square", (0,))))
    assert half["place"] == pytest.approx(0.5, abs=0.01)
    assert half["count"] == pytest.approx(0.0, abs=0.01)
    pale = picture(scene).astype(float) * 0.7 + picture(Scene("red", "circle", ())).astype(float) * 0.3
    faded = judged(scene.caption, pale.round().astype(np.uint8))
    assert 0.2 < faded["colour"] < 0.95
    noisy = np.clip(picture(scene).astype(float) + np.random.default_rng(0).normal(0, 15, (32, 32, 3)), 0, 255)
    assert 0.2 < judged(scene.caption, noisy.astype(np.uint8))["shape"] < 0.98


def test_nothing_and_noise_earn_little():
    empty = picture(Scene("red", "circle", ()))
    caption = "a red circle in the upper left"
    assert shapes.reward([caption], [empty])[0] < 0.05
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert shapes.reward([caption], [noise])[0] < 0.4


def test_pil_images_and_arrays_are_the_same_and_other_sizes_are_refused():
    scene = Scene("yellow", "circle", (2,))
    image = picture(scene)
    assert shapes.reward([scene.caption], [image]) == shapes.reward([scene.caption], [Image.fromarray(image)])
    with pytest.raises(PrefoptError, match="32x32"):
        shapes.reward([scene.caption], [Image.new("RGB", (16, 16))])
    with pytest.raises(PrefoptError, match="2 prompts for 1 images"):
        shapes.reward([scene.caption] * 2, [image])


def test_single_objectives_are_rewards():
    captions, images = [s.caption for s in scenes()[:4]], [picture(s) for s in scenes()[4:8]]
    found = shapes.parts(captions, images)
    for name in ("colour", "shape", "place", "count"):
        assert getattr(shapes, name)(captions, images) == found[name]


def test_every_word_is_one_token_and_every_caption_fits():
    tokenizer = word_tokenizer()
    words = {*COLOURS, *SHAPES, *(w for place in ONE | TWO for w in place.split())}
    for word in words:
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    for scene in scenes():
        ids = tokenizer(scene.caption).input_ids
        assert len(ids) == len(scene.caption.split()) + 2 <= TOKENS
        assert tokenizer.decode(ids, skip_special_tokens=True) == scene.caption


def test_tiny_pipelines_are_deterministic():
    one, two = (shapes.tiny_pipeline("sd", seed=3).unet.state_dict() for _ in range(2))
    assert all((one[k] == two[k]).all() for k in one)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_a_world_is_built_whole_and_the_same(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(building.EFFORT, kind, building.Effort(2, 2, 6, 4))
    monkeypatch.setattr(building, "SAMPLING", building.ImageSampling(steps=2, guidance=1.0, batch_size=8))
    world = shapes.build(tmp_path / "one", kind=kind, progress=False)
    rows = [json.loads(line) for line in world.train.read_text().splitlines()]
    held_out = [json.loads(line) for line in world.heldout.read_text().splitlines()]
    prompts = [json.loads(line)["prompt"] for line in world.prompts.read_text().splitlines()]
    assert len(rows) == 6
    assert len(held_out) == 4
    assert len(prompts) == building.HELD_OUT
    assert not {r["prompt"] for r in rows} & set(prompts)
    assert {r["prompt"] for r in held_out} <= set(prompts)
    for row in [*rows, *held_out]:
        files = [world.root / row[side] for side in ("chosen", "rejected")]
        scores = shapes.reward([row["prompt"]] * 2, [Image.open(f) for f in files])
        assert scores == pytest.approx([row["chosen_score"], row["rejected_score"]], abs=1e-4)
    assert all(row["chosen_score"] >= row["rejected_score"] for row in held_out)  # held-out labels are exact
    if kind == "sd":
        again = shapes.build(tmp_path / "two", kind=kind, progress=False)
        assert again.train.read_text() == world.train.read_text()
        image = rows[0]["chosen"]
        assert (again.root / image).read_bytes() == (world.root / image).read_bytes()


def test_labels_follow_the_temperature(monkeypatch, tmp_path):
    """With exact labels the better picture is always chosen; with noise it is chosen more often than not."""
    rng = np.random.default_rng(0)
    captions = [s.caption for s in scenes()]
    images = [Image.fromarray(picture(scenes()[(n // 2 + (n % 2) * 5) % 96], n)) for n in range(400)]
    monkeypatch.setattr(building, "sample_images", lambda *_, **__: images)
    (tmp_path / "images").mkdir()
    share = {}
    for temperature in (0.0, 0.3):
        building._pairs(tmp_path, "x", None, captions, 200, temperature, rng, False)
        rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
        share[temperature] = np.mean([r["chosen_score"] >= r["rejected_score"] for r in rows])
    assert share[0.0] == 1.0
    assert 0.6 < share[0.3] < 0.97


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(PrefoptError, match="no kind 'sd4'"):
        shapes.build(tmp_path, kind="sd4")
    with pytest.raises(PrefoptError, match="temperature -1"):
        shapes.build(tmp_path, temperature=-1)
