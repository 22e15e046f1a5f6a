"""The built reviews world: real formats, layouts, dials, and the same bytes again."""

import dataclasses
import json
from collections import Counter
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.errors import PrefoptError
from prefopt.worlds import reviews
from prefopt.worlds.reviews import make


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def build(cache, **dials):
    return reviews.build(cache, size="tiny", progress=False, **dials)


@pytest.fixture(scope="module")
def loaded(tiny_reviews):
    return AutoModelForCausalLM.from_pretrained(tiny_reviews.model), AutoTokenizer.from_pretrained(tiny_reviews.model)


def test_real_format(loaded):
    model, tokenizer = loaded
    assert type(model).__name__ == "LlamaForCausalLM"
    assert tokenizer.is_fast
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)


def test_tokenizer_round_trip_and_boundary(loaded, tiny_reviews):
    tokenizer = loaded[1]
    for row in rows(tiny_reviews.sft):
        prompt, completion = (
            tokenizer(row[key], add_special_tokens=False).input_ids for key in ("prompt", "completion")
        )
        assert tokenizer.decode(prompt + completion) == row["prompt"] + row["completion"]
        assert tokenizer(row["prompt"] + row["completion"]).input_ids == [tokenizer.bos_token_id, *prompt, *completion]
    assert tokenizer.decode(tokenizer("Écoute: 多い 🙂", add_special_tokens=False).input_ids) == "Écoute: 多い 🙂"


def test_plain_generation_ends_by_itself(loaded, tiny_reviews):
    model, tokenizer = loaded
    prompts = [row["prompt"] for row in rows(tiny_reviews.prompts)]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    torch.manual_seed(0)
    ids = model.generate(**batch, max_new_tokens=80)
    assert fmean((row == tokenizer.eos_token_id).any().item() for row in ids) > 0.9


def test_files_and_layouts(tiny_reviews):
    world = tiny_reviews
    train, heldout = rows(world.train), rows(world.heldout)
    assert len(train) == 128
    assert len(heldout) == 32
    assert len(rows(world.prompts)) == 32
    for row in train + heldout:
        assert list(row) == ["prompt", "chosen", "rejected", "chosen_score", "rejected_score"]
        assert row["chosen"] != row["rejected"]
        assert row["chosen"]
        assert row["rejected"]
        assert row["prompt"].endswith(":\n")
        scores = reviews.reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert scores == [row["chosen_score"], row["rejected_score"]]
    assert all(row["chosen_score"] > row["rejected_score"] for row in heldout)
    for row in rows(world.lists):
        assert 4 <= len(row["responses"]) <= 6
        assert len(set(row["responses"])) == len(row["responses"])
        assert row["scores"] == reviews.reward([row["prompt"]] * len(row["responses"]), row["responses"])
    for row in rows(world.objectives):
        assert row["scores"] == reviews.objectives([row["prompt"]] * len(row["responses"]), row["responses"])
    unpaired = rows(world.unpaired)
    assert {type(row["label"]) for row in unpaired} == {bool}
    assert set(unpaired[0]) == {"prompt", "completion", "label"}
    good, bad = ([row for row in unpaired if row["label"] is side] for side in (True, False))
    means = [
        fmean(reviews.reward([r["prompt"] for r in part], [r["completion"] for r in part])) for part in (good, bad)
    ]
    assert means[0] > means[1] + 0.03


def test_heldout_titles_are_unseen(tiny_reviews):
    def titles(path):
        return {row["prompt"].split("'")[1] for row in rows(path)}

    seen = titles(tiny_reviews.train) | titles(tiny_reviews.sft) | titles(tiny_reviews.lists)
    assert not seen & (titles(tiny_reviews.heldout) | titles(tiny_reviews.prompts))


def test_same_seed_same_bytes(tiny_reviews, tmp_path):
    again = build(tmp_path, seed=0)
    files = [path.relative_to(again.root) for path in again.root.rglob("*") if path.is_file()]
    assert "model.safetensors" in {path.name for path in files}
    for path in files:
        assert (again.root / path).read_bytes() == (tiny_reviews.root / path).read_bytes(), path


def test_builds_leave_no_trace_and_the_seed_matters(tmp_path, monkeypatch):
    # Two steps: the model is no good, but the path is the same.
    small = dataclasses.replace(make.SIZES["tiny"], steps=2, pairs=8, heldout=0, lists=2, prompts=2)
    monkeypatch.setitem(make.SIZES, "tiny", small)
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    one, two = build(tmp_path, seed=1), build(tmp_path, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    for part in ("train", "prompts", "sft"):
        assert getattr(one, part).read_bytes() != getattr(two, part).read_bytes()
    weights = [world.model / "model.safetensors" for world in (one, two)]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_label_noise_flips(cache):
    agree = [
        fmean(
            r["chosen_score"] >= r["rejected_score"] for r in rows(build(cache, label_noise=noise, temperature=0).train)
        )
        for noise in (0.0, 0.3, 1.0)
    ]
    assert agree[0] == 1.0
    assert 0.55 < agree[1] < 0.85
    assert agree[2] < 0.1  # ties remain


def test_temperature_softens(cache):
    hard, soft = (build(cache, temperature=t).facts["labels_that_agree_with_utility"] for t in (0.01, 10.0))
    assert hard > 0.85
    assert soft < 0.65


def test_length_bias_prefers_long(cache):
    def lead(world):
        return fmean(len(r["chosen"].split()) - len(r["rejected"].split()) for r in rows(world.train))

    assert lead(build(cache, length_bias=0.3)) > lead(build(cache)) + 1.5


def test_annotator_groups_have_tastes(cache):
    world = build(cache, annotator_groups=["reward", "harshness"], temperature=0)
    train = rows(world.train)
    assert set(Counter(row["annotator"] for row in train)) == {0, 1}
    gap = [
        fmean(
            reviews.sentiment([r["prompt"]], [r["chosen"]])[0] - reviews.sentiment([r["prompt"]], [r["rejected"]])[0]
            for r in train
            if r["annotator"] == group
        )
        for group in (0, 1)
    ]
    assert gap[0] > 0.1
    assert gap[1] < -0.1
    assert all(row["chosen_score"] > row["rejected_score"] for row in rows(world.heldout))


def test_groups_may_differ_in_reliability_only(cache):
    train = rows(build(cache, annotator_groups=["reward", "reward"], label_noise=[0.0, 0.5], temperature=0).train)
    right = [
        fmean(r["chosen_score"] >= r["rejected_score"] for r in train if r["annotator"] == group) for group in (0, 1)
    ]
    assert right[0] == 1.0
    assert right[1] < 0.8


def test_dials_share_the_model(cache, tiny_reviews):
    noisy = build(cache, label_noise=0.25)
    assert noisy.root != tiny_reviews.root
    assert len(list(cache.glob("reviews-base-*/model"))) == 1
    assert (noisy.model / "model.safetensors").read_bytes() == (tiny_reviews.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("part", ["model/model.safetensors", "train.jsonl"])
def test_damaged_world_is_mended(cache, tiny_reviews, part):
    path = tiny_reviews.root / part
    before = path.read_bytes()
    path.write_bytes(before[:-10])
    assert build(cache) == tiny_reviews
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("dials", "says"),
    [
        ({"label_noise": 1.5}, "label_noise"),
        ({"label_noise": [0.1, 0.2]}, "label_noise"),
        ({"annotator_groups": 0}, "annotator_groups"),
        ({"annotator_groups": 9}, "annotator_groups"),
        ({"annotator_groups": ["kindness"]}, "harshness"),
        ({"annotator_groups": []}, "tastes"),
        ({"temperature": -1.0}, "temperature"),
        ({"length_bias": float("nan")}, "length_bias"),
    ],
)
def test_bad_dials(cache, dials, says):
    with pytest.raises(PrefoptError, match=says):
        build(cache, **dials)


def test_bad_size(cache):
    with pytest.raises(PrefoptError, match="tiny"):
        reviews.build(cache, size="huge")
