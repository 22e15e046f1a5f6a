"""The collator: what lies where in a packed batch, keys, notes."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
import torch

from prefopt import PrefoptError
from prefopt.scoring.base import Draw
from prefopt.scoring.batch import Collator, content_key
from prefopt.scoring.tree import plant

from .tiny_text import example


def collate(*examples: object, extras: tuple[str, ...] = ()) -> object:
    return Collator(frozenset(extras))([Draw(e, 0) for e in examples])


def test_a_packed_tree() -> None:
    tree = plant([([5, 6, 7], [[8, 9], [10]]), ([1], [[2], []])])
    assert tree.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 1, 2]]
    assert tree.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1]]
    assert tree.branch.tolist() == [[0, 0, 0, 1, 1, 2, 0, 1]]
    assert [(s.start, s.length, s.depth) for s in tree.segments] == [(0, 6, 5), (6, 2, 2)]
    index, mask = tree.paths()
    ids = tree.input_ids[0][index] * mask
    assert ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 10, 0], [1, 2, 0, 0, 0], [1, 0, 0, 0, 0]]


def test_nothing_is_padded() -> None:
    some = [example(9, 5, 8), example(2, 3, 1, 4, seed=1)]
    batch = collate(*some)
    assert batch.layout.input_ids.shape == (1, 9 + 5 + 8 + 2 + 3 + 1 + 4)
    assert len(batch.rows["responses"].index) == 5 + 8 + 3 + 1 + 4


def test_rows_point_at_what_predicts_their_tokens() -> None:
    batch = collate(example(9, 5, 8, gold=3), example(2, 3, 1, gold=2, seed=1), extras=("prompt", "gold"))
    ids, position, branch = (x[0] for x in (batch.layout.input_ids, batch.layout.position_ids, batch.layout.branch))
    for rows in batch.rows.values():
        for r in range(len(rows.mask)):
            n = rows.lengths[r]
            at, target = rows.at[r, :n], rows.target[r, :n]
            assert rows.mask[r].sum() == n
            assert ids[at[1:]].tolist() == target[:-1].tolist()  # the next input is the token that was predicted
            assert ids[rows.last[r]] == (target[-1] if n else ids[at.new_tensor(0)])
            assert (position[at].diff() == 1).all()
            assert branch[at[1:]].unique().numel() <= 1
            assert set(at.tolist()) | {rows.last[r].item()} <= set(batch.layout.needed.tolist())
    assert batch.layout.needed.tolist() == sorted(set(batch.layout.needed.tolist()))


def test_keys_tell_contents_apart() -> None:
    keys = [
        content_key([1, 2], [3], [1]),
        content_key([1], [2, 3], [1, 1]),
        content_key([1, 2, 3], [], []),
        content_key([1], [2, 3], [0, 1]),
        content_key([1], [2, 3], [1, 0]),
    ]
    assert len(set(keys)) == len(keys)
    assert content_key([1], [2, 3], [True, True]) == keys[1] == content_key([1], [2, 3], None)
    one, two = example(3, 2, 2), example(4, 2, 2, seed=1)
    together, alone = collate(one, two).keys["responses"], collate(two).keys["responses"]
    assert together[2:] == alone
    assert len(set(together)) == 4


def test_notes_lie_side_by_side() -> None:
    first = {"margin": [0.5], "score": [1, None], "annotator": [3], "step_index": [[1, 1, 2], [1]], "mine": [1, 2]}
    second = {
        "margin": [1.0, 2.0],
        "score": [4, 5, 6],
        "annotator": [0, 1],
        "step_index": [[0], [1, 2], [1]],
        "mine": [3, 4, 5],
    }
    steps = {"step_score": [[0.1, 0.2], [0.3]]}
    batch = collate(
        example(3, 3, 1, notes=first | steps),
        example(2, 1, 2, 1, seed=1, pairs=[[2, 0], [0, 1]], notes=second | {"step_score": [[], [1.0], [2.0]]}),
    )
    notes = batch.notes
    assert notes["group"].tolist() == [0, 0, 1, 1, 1]
    assert notes["pairs"].tolist() == [[0, 1], [4, 2], [2, 3]]
    assert notes["margin"].tolist() == [0.5, 1.0, 2.0]
    assert notes["annotator"].tolist() == [3, 0, 1]
    assert notes["annotator"].dtype == torch.long
    assert math.isnan(notes["score"][1])
    assert notes["score"].dtype == torch.float32
    assert notes["step_index"].tolist() == [[1, 1, 2], [1, 0, 0], [0, 0, 0], [1, 2, 0], [1, 0, 0]]
    assert notes["mine"].tolist() == [1, 2, 3, 4, 5]
    assert notes["step_score"].shape == (5, 2)
    assert notes["step_score"].isnan().sum() == 5
    assert collate(example(2, 3, notes={"label": [True]})).notes["label"].dtype == torch.bool
    assert "pairs" not in collate(example(2, 3)).notes
    with pytest.raises(PrefoptError, match=r"b.jsonl row 9.*'margin'"):
        collate(example(3, 3, 1, notes=first), example(2, 1, 1, file="b.jsonl", row=9))


def test_a_partner_of_the_sampler_comes_before_the_neighbour() -> None:
    a, b, c = (example(4, 2 + i, seed=i) for i in range(3))
    drawn = Collator(frozenset({"mismatched"}))([Draw(a, 0, c), Draw(b, 0, a)])
    tree = drawn.apart["mismatched"].layout
    assert tree.input_ids[0].tolist() == a.prompt_ids + c.response_ids[0] + b.prompt_ids + a.response_ids[0]
    neighbours = collate(a, b, c, extras=("mismatched",)).apart["mismatched"]
    assert neighbours.rows["responses"].lengths == (3, 4, 2)


def test_batches_travel() -> None:
    collator = Collator(frozenset({"mismatched"}))
    batch = pickle.loads(pickle.dumps(collator))([Draw(example(3, 2, 2), 0), Draw(example(2, 1, 1, seed=1), 0)])
    there = batch.to("meta")
    tensors = [getattr(there.layout, f.name) for f in dataclasses.fields(there.layout)]
    tensors += [getattr(r, f.name) for r in there.rows.values() for f in dataclasses.fields(r)]
    tensors += [*there.notes.values(), there.apart["mismatched"].layout.input_ids]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
    assert batch.layout.input_ids.device.type == "cpu"
    assert batch.counts().keys() == {"responses", "mismatched"}
