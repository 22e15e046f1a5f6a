"""Captions, labels and lists of pictures: what is written, by whom, and that a stopped build goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prefopt.annotation import growing
from prefopt.annotation.captions import build_captions
from prefopt.annotation.joined import build_lists
from prefopt.annotation.labels import build_labels
from prefopt.annotation.perturb import Words, amount
from prefopt.data.config import DataConfig
from prefopt.errors import PrefoptError


def brightness(prompts: list[str], images: list[Any]) -> list[float]:
    return [float(np.asarray(i).mean()) for i in images]


def tone(images: list[Any], prompts: list[str]) -> list[str]:
    return [f"{p}, {'light' if np.asarray(i).mean() > 127 else 'dark'}" for i, p in zip(images, prompts, strict=True)]


def turned(texts: list[str], strength: str) -> list[str]:
    return [f"{strength} {' '.join(reversed(t.split()))}" for t in texts]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def config(path: Path, **more: Any) -> DataConfig:
    return DataConfig(path=str(path), **more)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Five pairs: the chosen one is darker in the first two; the last a tie of the data in Pick-a-Pic's columns."""
    rows = []
    for i in range(5):
        for side, grey in (("a", 40 + 45 * i), ("b", 90)):
            Image.new("RGB", (8, 8), (grey, grey, grey)).save(tmp_path / f"{i}-{side}.png")
        rows.append({"prompt": f"a small red house number {i}", "chosen": f"{i}-a.png", "rejected": f"{i}-b.png"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path / "pairs.jsonl"


@pytest.mark.parametrize("way", ["c", "p", "h"])
def test_the_three_ways(way: str, pairs: Path, tmp_path: Path) -> None:
    of: dict[str, Any] = {"captioner": tone} if way != "p" else {}
    of |= {"perturber": turned, "strength": "weak"} if way != "c" else {}
    build_captions(config(pairs), tmp_path / "out" / "d.jsonl", way=way, progress=False, **of)  # type: ignore[arg-type]
    for i, row in enumerate(rows_of(tmp_path / "out" / "d.jsonl")):
        prompt = row["prompt"]
        z_w, z_l = (f"{prompt}, {'light' if g > 127 else 'dark'}" for g in (40 + 45 * i, 90))
        wanted = {"c": (z_w, z_l), "p": (prompt, turned([prompt], "weak")[0]), "h": (z_w, turned([z_l], "weak")[0])}[
            way
        ]
        assert (row["caption_chosen"], row["caption_rejected"]) == wanted
        assert Image.open(tmp_path / "out" / row["chosen"]).size == (8, 8)  # the path leads there


def test_captions_stand_beside_their_pictures_whatever_the_label(tmp_path: Path) -> None:
    rows = []
    for i, label in enumerate((1, 0, 0.5)):
        for side, grey in (("0", 200), ("1", 30)):
            Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / f"{i}-{side}.png")
        rows.append({"jpg_0": f"{i}-0.png", "jpg_1": f"{i}-1.png", "label_0": label, "caption": "a lamp"})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    build_captions(config(tmp_path / "p.jsonl"), tmp_path / "d.jsonl", way="c", captioner=tone, progress=False)
    made = rows_of(tmp_path / "d.jsonl")
    assert [(r["caption_0"], r["caption_1"]) for r in made] == [
        ("a lamp, light", "a lamp, dark")
    ] * 2  # the tie is gone


def test_words_are_exchanged_more_and_more() -> None:
    texts = ["The old bridge crosses a quiet river", "Two children paint bright boats in the harbour"]
    sizes = []
    for percent in (0, 20, 40, 60, 80, 100):
        made = Words(texts, percent, 0)(texts)
        assert made == Words(texts, percent, 0)(texts)
        assert [re.sub(r"\w+", "w", t) for t in made] == [re.sub(r"\w+", "w", t) for t in texts]
        assert made[0].split()[0] == "The"  # stop words stay
        sizes.append(sum(a != b for x, y in zip(texts, made, strict=True) for a, b in zip(x.split(), y.split())))
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] == 11  # all content words
    assert Words(texts, 60, 1)(texts) != Words(texts, 60, 0)(texts)
    assert [amount(s) for s in ("weak", "medium", "strong", "20")] == [40, 60, 80, 20]


def test_a_caption_model_and_a_paraphraser_of_transformers(pairs: Path, tmp_path: Path) -> None:
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipProcessor,
        T5Config,
        T5ForConditionalGeneration,
    )

    from tests.small_clip import draw, image_processor

    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "house", "tree"])
    )
    words = BertTokenizer(str(tmp_path / "vocab.txt"))
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = shape | ends | {"vocab_size": 9, "encoder_hidden_size": 16, "max_position_embeddings": 80}
    blip = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=shape | {"image_size": 16, "patch_size": 8})
    )
    draw(blip, 1)
    with __import__("torch").no_grad():
        blip.text_decoder.cls.predictions.bias[[1, 0, 3]] = -9.0  # say something
    blip.save_pretrained(tmp_path / "blip")
    BlipProcessor(image_processor(), words).save_pretrained(tmp_path / "blip")
    t5 = T5ForConditionalGeneration(
        T5Config(
            vocab_size=9,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            eos_token_id=3,
            pad_token_id=0,
        )
    )
    draw(t5, 2)
    t5.save_pretrained(tmp_path / "t5")
    words.save_pretrained(tmp_path / "t5")
    of: dict[str, Any] = {"captioner": str(tmp_path / "blip"), "perturber": str(tmp_path / "t5"), "progress": False}
    for name in ("one", "two"):
        build_captions(config(pairs), tmp_path / f"{name}.jsonl", way="h", strength="strong", **of)
    one, two = (rows_of(tmp_path / f"{name}.jsonl") for name in ("one", "two"))
    assert one == two
    assert all(r["caption_chosen"].strip() and r["caption_rejected"].strip() for r in one)


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ({"way": "x"}, "there are c"),
        ({"way": "c"}, "needs a captioner"),
        ({"way": "p", "captioner": tone}, "no use for a captioner"),
        ({"way": "c", "captioner": tone, "perturber": "words"}, "no use for a perturber"),
        ({"way": "p", "strength": "huge"}, "strength 'huge' is unknown"),
        ({"way": "p", "strength": "30"}, "strength '30' is unknown"),
        ({"way": "c", "captioner": lambda i, p: None}, "returned NoneType"),
        ({"way": "c", "captioner": lambda i, p: ["one"]}, "returned 1 texts for 5"),
        ({"way": "c", "captioner": lambda i, p: [""] * len(i)}, "not empty"),
        ({"way": "c", "captioner": "nowhere:say"}, "no Python module"),
        ({"way": "p", "perturber": lambda t, s: [None] * len(t)}, "returned None for number 0"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refusals(of: dict[str, Any], words: str, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(PrefoptError, match=words):
        build_captions(config(pairs), tmp_path / "d.jsonl", progress=False, **of)
    assert not (tmp_path / "d.jsonl").exists()


def test_a_stopped_build_goes_on_and_another_job_is_refused(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "CHUNK", 2)
    asked: list[int] = []

    def say(images: list[Any], prompts: list[str]) -> list[str]:
        asked.append(len(images))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return tone(images, prompts)

    with pytest.raises(KeyboardInterrupt):
        build_captions(config(pairs), tmp_path / "d.jsonl", way="c", captioner=say, progress=False)
    assert not (tmp_path / "d.jsonl").exists()
    build_captions(config(pairs), tmp_path / "d.jsonl", way="c", captioner=say, progress=False)
    assert asked == [2, 2, 2, 2, 2, 1, 1]  # the first chunk was kept
    build_captions(config(pairs), tmp_path / "whole.jsonl", way="c", captioner=tone, progress=False)
    assert rows_of(tmp_path / "d.jsonl") == rows_of(tmp_path / "whole.jsonl")
    with pytest.raises(PrefoptError, match="holds something else"):
        build_captions(config(pairs), tmp_path / "d.jsonl", way="p", progress=False)


def test_labels_by_a_scorer(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "taste.py").write_text(
        "import numpy as np\ndef light(prompts, images):\n    return [float(np.asarray(i).mean()) / 40 for i in images]\n"
    )
    record = build_labels(config(pairs), f"{tmp_path / 'taste.py'}:light", tmp_path / "new.jsonl", progress=False)
    rows = rows_of(tmp_path / "new.jsonl")
    # greys 40, 85, 130, 175, 220 against 90: the first two lose
    assert [Path(r["chosen"]).name for r in rows] == ["0-b.png", "1-b.png", "2-a.png", "3-a.png", "4-a.png"]
    assert all(r["chosen_score"] > r["rejected_score"] for r in rows)
    assert record["told"] == {"labels that stay": 3, "labels turned round": 2, "ties": 0}
    again = build_labels(config(pairs), f"{tmp_path / 'taste.py'}:light", tmp_path / "new.jsonl", progress=False)
    assert again["told"] == record["told"]  # though nothing was labelled now
    near = tmp_path / "near" / "new.jsonl"
    build_labels(config(pairs), f"{tmp_path / 'taste.py'}:light", near, gap=0.1, progress=False)
    soft = [r["label_probability"] for r in rows_of(near)]
    assert soft == [1.0, 0.5, 1.0, 1.0, 1.0]  # 85 against 90: tanh(0.0625) < 0.1
    assert (near.parent / rows_of(near)[0]["chosen"]).resolve() == (tmp_path / "0-b.png").resolve()


def test_ties_of_the_data_are_labelled_too(tmp_path: Path) -> None:
    for side, grey in (("0", 30), ("1", 200)):
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / f"{side}.png")
    row = {"jpg_0": "0.png", "jpg_1": "1.png", "label_0": 0.5, "caption": "a lamp"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "taste.py").write_text(
        "import numpy as np\ndef light(prompts, images):\n    return [float(np.asarray(i).mean()) for i in images]\n"
    )
    build_labels(config(tmp_path / "p.jsonl"), f"{tmp_path / 'taste.py'}:light", tmp_path / "n.jsonl", progress=False)
    assert [Path(r["chosen"]).name for r in rows_of(tmp_path / "n.jsonl")] == ["1.png"]


def test_lists_of_several_generators(tmp_path: Path) -> None:
    for g, prompts in enumerate((["a", "b", "c"], ["b", "a"], ["a", "d"])):
        folder = tmp_path / f"g{g}"
        folder.mkdir()
        rows = []
        for i, p in enumerate(prompts):
            Image.new("RGB", (8, 8), (20 * g,) * 3).save(folder / f"{i}.png")
            rows.append({"prompt": p, "responses": [f"{i}.png"], "seeds": [i]})
        (folder / "images.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sources = [str(tmp_path / f"g{g}") for g in range(3)]
    build_lists(sources, tmp_path / "out" / "lists.jsonl", progress=False)
    made = {r["prompt"]: r for r in rows_of(tmp_path / "out" / "lists.jsonl")}
    assert {p: len(r["responses"]) for p, r in made.items()} == {"a": 3, "b": 2}
    greys = [np.asarray(Image.open(tmp_path / "out" / f)).max() for f in made["a"]["responses"]]
    assert greys == [0, 20, 40]
    assert made["b"]["generators"] == sources[:2]
    with pytest.raises(PrefoptError, match="at least two"):
        build_lists(sources[:1], tmp_path / "one.jsonl", progress=False)
