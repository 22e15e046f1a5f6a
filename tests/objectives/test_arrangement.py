"""Where responses and pairs stand in a batch does not matter, for every registered method."""

from __future__ import annotations

import torch
from every import EVERY_WAY_OF_ALL, EXACT
from from_needs import Made, collate, examples, gradients, loss_of

from prefopt import Method


def rearranged(m: Method, made: Made, seed: int = 0) -> Made:
    """The same batch with its responses (and pairs) in another order."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(made.notes["group"]), generator=g)
    if any(
        s.get("dtype") == "common step" for s in m.needs().values()
    ):  # steps are measured by the list's first answer
        group = made.notes["group"]
        first = torch.isin(rows, (group[:, None] == group[None]).int().argmax(1))
        rows = torch.cat([rows[first], rows[~first]])
    where_now = torch.argsort(rows)
    shapes = {k.removeprefix("notes:"): s["shape"].split() for k, s in m.needs().items() if k.startswith("notes:")}
    paired = "pairs" in made.notes
    pairs = torch.randperm(len(made.notes["pairs"]), generator=g) if paired else rows

    def moved(x: torch.Tensor, axes: list[str]) -> torch.Tensor:
        for axis, name in enumerate(axes):
            x = x.index_select(axis, {"R": rows, "P": pairs}[name]) if name in ("R", "P") else x
        return x

    notes = {k: moved(x, shapes.get(k, ["R"])) for k, x in made.notes.items()}
    if paired:
        notes["pairs"] = where_now[notes["pairs"]]
    scores = {s: {k: x[rows if s == "responses" else pairs] for k, x in v.items()} for s, v in made.scores.items()}
    features = {k: moved(x, m.needs()[f"features:{k}"]["shape"].split()) for k, x in made.features.items()}
    return Made(notes, scores, features=features)


@EVERY_WAY_OF_ALL
def test_where_a_response_stands_does_not_matter(m, sparse):
    """Responses of a list in another order, lists interleaved, pairs shuffled: one loss, one gradient."""
    of = examples(m, 5, seed=12, sparse=sparse)
    answers = []
    for batch in (collate(of), rearranged(m, collate(of))):
        loss, _ = loss_of(m, batch)
        loss.scalar.backward()
        answers.append((loss.scalar.detach(), gradients(of)))
    torch.testing.assert_close(answers[0][0], answers[1][0], **EXACT)
    for k, g in answers[0][1].items():
        torch.testing.assert_close(g, answers[1][1][k], **EXACT)
