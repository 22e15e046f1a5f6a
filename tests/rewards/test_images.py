"""Scorers of pictures against plain transformers, on tiny folders drawn at random."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BlipForImageTextRetrieval, CLIPModel

from prefopt.annotation.build import build_scores
from prefopt.data.config import DataConfig
from prefopt.errors import PrefoptError
from prefopt.rewards.images import SCORERS, load_scorer
from prefopt.rewards.judges import load_judge
from prefopt.rewards.load import load_reward
from tests.small_clip import save_blip, save_clip, save_head

PROMPTS = ["a red circle in the upper left", "two blue squares at the top", "a red circle in the upper left"]
WIDTHS = (8, 12, 6, 5, 4, 1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    g = np.random.default_rng(0)
    sizes = [(20, 24), (16, 16), (40, 17)]
    return [Image.fromarray(g.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


def cosines(folder: Path, images: list[Image.Image]) -> tuple[torch.Tensor, float]:
    """By transformers alone: the diagonal of its own table, and its scale."""
    model, read = CLIPModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    given = read(text=PROMPTS, images=images, return_tensors="pt", padding=True, truncation=True, max_length=12)
    with torch.no_grad():
        found = model(**given)
    scale = float(model.logit_scale.detach().exp())
    return found.logits_per_image.diagonal().double() / scale, scale


def test_clip_types_are_what_transformers_says(clip: Path, images: list[Image.Image]) -> None:
    cosine, scale = cosines(clip, images)
    assert cosine.std() > 0.05
    assert cosine.min() < 0 < cosine.max()
    wanted = {"clip-score": 100 * cosine.clamp(min=0), "pickscore": scale * cosine, "hpsv2": 100 * cosine}
    for kind, values in wanted.items():
        scorer = load_scorer(f"{kind}:{clip}")
        assert scorer.score(images, PROMPTS) == pytest.approx(values.tolist(), abs=1e-4)
        assert load_reward(f"{kind}:{clip}")(PROMPTS, images) == scorer.score(images, PROMPTS)


def test_aesthetics_is_a_linear_head_on_the_normalised_embedding(
    clip: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    layers = save_head(tmp_path / "head.pth", WIDTHS)
    found = load_scorer(f"aesthetic:{clip},head={tmp_path / 'head.pth'}")
    model, read = CLIPModel.from_pretrained(clip).eval(), AutoProcessor.from_pretrained(clip)
    with torch.no_grad():
        seen = model.vision_model(read.image_processor(images, return_tensors="pt")["pixel_values"]).pooler_output
        x = model.visual_projection(seen)
        x = x / x.norm(dim=-1, keepdim=True)
        for layer in layers:
            x = x @ layer.weight.T + layer.bias
    assert found.score(images, PROMPTS) == pytest.approx(x[:, 0].tolist(), abs=1e-5)
    assert found.score(images, PROMPTS) == found.score(images, PROMPTS[::-1])  # prompts are not read
    widths = [m.in_features for m in found.model.head]  # type: ignore[union-attr]
    assert widths == list(WIDTHS[:-1])


def test_imagereward_is_a_head_on_what_the_text_reads_in_the_picture(images: list[Image.Image], tmp_path: Path) -> None:
    folder = save_blip(tmp_path / "blip")
    layers = save_head(folder / "head.safetensors", (16, 6, 1))
    found = load_scorer(f"imagereward:{folder}").score(images, PROMPTS)
    blip, read = BlipForImageTextRetrieval.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    for image, prompt, value in zip(images, PROMPTS, found, strict=True):  # one by one, unpadded
        with torch.no_grad():
            state = blip.vision_model(read.image_processor(image, return_tensors="pt")["pixel_values"])[0]
            words = read.tokenizer(prompt, return_tensors="pt")
            ids = {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"]}
            x = blip.text_encoder(**ids, encoder_hidden_states=state)[0][0, 0]
            for layer in layers:
                x = layer.weight @ x + layer.bias
        assert value == pytest.approx((float(x) - 0.16717) / 1.0333, abs=1e-4)
    shifted = load_scorer(f"imagereward:{folder},mean=0,std=1").score(images, PROMPTS)
    assert shifted == pytest.approx([v * 1.0333 + 0.16717 for v in found], abs=1e-4)


def test_batches_do_not_matter(clip: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_scorer(f"pickscore:{clip}")
    whole = scorer.score(images, PROMPTS)
    monkeypatch.setattr("prefopt.rewards.images.BATCH", 1)
    assert scorer.score(images, PROMPTS) == pytest.approx(whole, abs=1e-5)


def test_a_scorer_judges(clip: Path, images: list[Image.Image]) -> None:
    scores = load_scorer(f"pickscore:{clip}").score(images, PROMPTS)
    judge = load_judge(f"pickscore:{clip}")
    assert judge(PROMPTS[:1], images[:1], images[2:]) == [float(scores[0] > scores[2])]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pickscore:nowhere-at-all/here", "cannot be loaded|has no processor"),
        ("pickscore:{clip},scale=2", "'scale' is no option"),
        ("hpsv2", "name a folder"),
        ("aesthetic:{clip}", "has no head"),
        ("aesthetic:{clip},head=none.pth", "there is no file"),
        ("aesthetic:{clip},head={wrong}", "it must lead from 8 numbers to 1"),
        ("imagereward:{clip},head={wrong}", "expected blip"),
        ("imagereward:{clip},std=0", "std must be greater"),
        ("step-aware:{clip}", "no step-aware preference model"),
        ("clip-scor:{clip}", "did you mean 'clip-score'"),
    ],
)
def test_refusals(spec: str, message: str, clip: Path, tmp_path: Path) -> None:
    save_head(tmp_path / "wrong.pth", (7, 3, 2))
    with pytest.raises(PrefoptError, match=message):
        load_scorer(spec.format(clip=clip, wrong=tmp_path / "wrong.pth"))


def test_lacking_weights_and_lengths_are_refused(clip: Path, images: list[Image.Image], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_clip(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PrefoptError, match="would be random"):
        load_scorer(f"pickscore:{tmp_path}")
    with pytest.raises(PrefoptError, match="3 images for 2 prompts"):
        load_scorer(f"pickscore:{clip}").score(images, PROMPTS[:2])
    assert sorted(SCORERS) == ["aesthetic", "clip-score", "hpsv2", "imagereward", "pickscore", "step-aware"]


def test_scores_of_pictures_become_columns_and_paths_still_lead_there(
    clip: Path, image_pairs: Path, tmp_path: Path
) -> None:
    data = DataConfig(path=str(image_pairs))  # type: ignore[call-arg]
    add = {"score": [f"pickscore:{clip}"], "reward_scores": [f"clip-score:{clip}", f"hpsv2:{clip}"]}
    record = build_scores(data, add, tmp_path / "elsewhere" / "scored.jsonl", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "elsewhere" / "scored.jsonl").read_text().splitlines()]
    picture = Image.open(tmp_path / "elsewhere" / rows[3]["rejected"])
    prompt = rows[3]["prompt"]
    one = {k: load_scorer(f"{k}:{clip}").score([picture], [prompt])[0] for k in ("pickscore", "clip-score", "hpsv2")}
    assert rows[3]["rejected_score"] == pytest.approx(one["pickscore"], abs=1e-4)
    assert rows[3]["rejected_reward_scores"] == pytest.approx([one["clip-score"], one["hpsv2"]], abs=1e-4)
    assert record["statistics"]["reward_scores"]["numbers"] == 32
    with pytest.raises(PrefoptError, match="log-probabilities are of texts"):
        build_scores(data, {"sources": ["x"]}, tmp_path / "more.jsonl", progress=False)
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    with pytest.raises(PrefoptError, match="scores pictures"):
        build_scores(DataConfig(path=str(texts)), add, tmp_path / "more.jsonl", progress=False)  # type: ignore[call-arg]
