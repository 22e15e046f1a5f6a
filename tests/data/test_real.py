"""The real data sets, where they are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.data.config import DataConfig
from prefopt.data.prepare import prepare_text
from prefopt.data.validate import check_data
from tests.data.families import tokenizer


def test_hh_transcripts(hh_path: Path, tmp_path: Path) -> None:
    config = DataConfig(path=str(hh_path), limit=1300, max_length=2048)
    report = check_data(config, needs={"pairs"}, progress=False)
    findings = {f.title: f.rows for f in report.findings}
    assert findings["an empty answer"] == ["87", "517", "926", "1104"]
    assert findings["diverges early"] == ["1255"]
    assert (report.layout, report.sound, report.usable) == ("transcripts", True, 1296)
    tok = tokenizer("plain")
    made = prepare_text(config.model_copy(update={"limit": 90}), tok, needs={"pairs"}, cache=tmp_path, progress=False)
    assert len(made.train) == 89
    first = made.train[0]
    assert tok.decode(first.prompt_ids).endswith("do not have anything to do with pens\n\nAssistant:")
    assert tok.decode(first.response_ids[0]).startswith(" No, sorry!")


def test_hh_in_full(hh_path: Path) -> None:
    report = check_data(DataConfig(path=str(hh_path)), needs={"pairs"}, progress=False)
    findings = {f.title: f.rows for f in report.findings}
    assert findings["diverges early"] == ["1255", "1689", "1951", "1953", "2037"]
    assert (report.rows, report.usable, report.sound) == (2312, 2308, True)


@pytest.mark.parametrize(("pairing", "pairs"), [("best_worst", 1), ("all", 9)])
def test_alpaca_lists(alpaca_lists_path: Path, tmp_path: Path, pairing: str, pairs: int) -> None:
    config = DataConfig(path=str(alpaca_lists_path), limit=20, max_length=None, pairing=pairing,
                        soft_labels="probability", use=["label_probability", "margin"])  # fmt: skip
    made = prepare_text(config, tokenizer("plain"), needs={"pairs"}, cache=tmp_path, progress=False)
    first = made.train[0]
    assert len(first.pairs) == pairs
    assert all(0.5 < p <= 1 for p in first.notes["label_probability"])
    assert first.notes["margin"][0] == pytest.approx(0.5 if pairing == "best_worst" else 0.4985)
