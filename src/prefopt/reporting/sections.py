"""What a report says in words and tables: headline tiles, samples, images, data, environment."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from prefopt.reporting.run_folder import Row, Run


class Tile(NamedTuple):
    """A headline number, with small print before and after it.

    `bar` is (low, value, high) in [0, 1] of an interval drawn beneath; `tone` is good, bad or empty.
    """

    label: str
    value: str
    note: str
    before: str = ""
    after: str = ""
    tone: str = ""
    bar: tuple[float, float, float] | None = None


def tiles(evaluation: dict[str, Any]) -> list[Tile]:
    """The headline numbers that the evaluation holds."""
    found = [_reward(evaluation), _win_rate(evaluation), _accuracy(evaluation), _kl(evaluation), _length(evaluation)]
    return [tile for tile in found if tile is not None]


def _reward(evaluation: dict[str, Any]) -> Tile | None:
    reward = evaluation.get("reward") or {}
    start, after, gain = (reward.get(k) or {} for k in ("start", "policy", "gain"))
    if after.get("value") is None:
        return None
    tone = ""
    note = "mean reward of the samples"
    if gain.get("value") is not None:
        note = f"gain {signed(gain['value'])}"
        if gain.get("ci"):
            low, high = gain["ci"]
            tone = "good" if low > 0 else "bad" if high < 0 else ""
            note += f" [{signed(low)},\u00a0{signed(high)}]"
    before = f"{number(start['value'])} →" if start.get("value") is not None else ""
    return Tile("Reward", number(after["value"]), note, before, tone=tone)


def _win_rate(evaluation: dict[str, Any]) -> Tile | None:
    rate = evaluation.get("win_rate") or {}
    if rate.get("value") is None:
        return None
    low, high = rate.get("ci") or (rate["value"], rate["value"])
    tone = "good" if low > 0.5 else "bad" if high < 0.5 else ""
    note = f"against the start model [{low:.0%},\u00a0{high:.0%}]"
    return Tile("Win rate", f"{rate['value']:.0%}", note, tone=tone, bar=(low, rate["value"], high))


def _accuracy(evaluation: dict[str, Any]) -> Tile | None:
    accuracy = (evaluation.get("preference") or {}).get("accuracy") or {}
    if accuracy.get("value") is None:
        return None
    low, high = accuracy.get("ci") or (accuracy["value"], accuracy["value"])
    note = f"of {accuracy['n']} held-out pairs in order"
    return Tile("Preference accuracy", f"{accuracy['value']:.0%}", note, bar=(low, accuracy["value"], high))


def _kl(evaluation: dict[str, Any]) -> Tile | None:
    kl = (evaluation.get("kl") or {}).get("k1") or {}
    if kl.get("value") is None:
        return None
    error = f"± {number(kl['se'], kl['value'])}" if kl.get("se") is not None else ""
    return Tile("KL from start", number(kl["value"]), "nats per answer: how far the model moved", after=error)


def _length(evaluation: dict[str, Any]) -> Tile | None:
    tokens = (evaluation.get("length") or {}).get("tokens") or {}
    start, after = (tokens.get(k) or {} for k in ("start", "policy"))
    if after.get("value") is None:
        return None
    before = f"{start['value']:.0f} →" if start.get("value") is not None else ""
    change = f"{after['value'] / start['value'] - 1:+.0%} ".replace("-", "−") if start.get("value") else ""
    return Tile("Length", f"{after['value']:.0f}", f"{change}tokens per answer", before)


def chosen_samples(rows: list[Row], each: int = 2) -> list[tuple[str, str, list[Row]]]:
    """Samples by their change of reward: best, typical (around the median) and worst; without rewards the first ones.

    Picked by rule, not by eye, so that the report shows failures as plainly as successes.
    """
    rated = [r for r in rows if _finite(r.get("reward_before")) and _finite(r.get("reward_after"))]
    if not rated:
        return [("First samples", "in the order of the prompts", rows[: 3 * each])] if rows else []
    ordered = sorted(rated, key=lambda r: r["reward_before"] - r["reward_after"])
    if len(ordered) < 3 * each:
        return [("All samples", "from the largest gain to the largest loss", ordered)]
    middle = (len(ordered) - each) // 2
    return [
        ("Best", "the largest gains in reward", ordered[:each]),
        ("Typical", "around the median change", ordered[middle : middle + each]),
        ("Worst", "the smallest gains, or largest losses", ordered[-each:]),
    ]


def image_rows(run: Run, most: int = 12) -> list[Row]:
    """Rows of the image grid with their files inlined; a row whose files are missing is left out."""
    rows = []
    for row in run.images:
        files = {side: run.folder / str(row.get(side)) for side in ("before", "after")}
        if all(file.is_file() and file.suffix.lower() in _KINDS for file in files.values()):
            small = max(Image.open(file).width for file in files.values()) < 128
            rows.append({**row, **{side: _data_uri(file) for side, file in files.items()}, "small": small})
        if len(rows) == most:
            break
    return rows


_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def _data_uri(file: Path) -> str:
    return f"data:image/{_KINDS[file.suffix.lower()]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def details(evaluation: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (measure, before, after, n) of the table with all evaluated numbers."""
    rows: list[tuple[str, str, str, str]] = []

    def walk(node: dict[str, Any], path: list[str]) -> None:
        if "value" in node and "se" in node:
            rows.append((label(path), "", interval(node), str(node["n"])))
            rest: dict[str, Any] = {k: v for k, v in node.items() if isinstance(v, dict) and "value" in v}
        elif isinstance(node.get("policy"), dict):
            rows.append(
                (
                    label(path),
                    interval(node.get("start") or {}),
                    interval(node["policy"]),
                    str(node["policy"].get("n", "")),
                )
            )
            rest = {k: v for k, v in node.items() if k not in ("policy", "start")}
        else:
            rest = node
        for key, value in rest.items():
            if isinstance(value, dict) and key not in ("settings", "dropped"):
                walk(value, [*path, key])

    walk(evaluation, [])
    return rows


_NAMES = {
    "kl k1": "KL from the start (k1, unbiased)",
    "kl k3": "KL from the start (k3, steadier)",
    "length tokens": "Length in tokens",
    "length characters": "Length in characters",
    "finished": "Share of answers that end by themselves",
    "win_rate position_bias": "Position bias of the judge",
    "diversity self_bleu": "Self-BLEU (higher: more alike)",
    "diversity predictive_entropy": "Entropy of the next token (nats)",
    "preference accuracy": "Preference accuracy, held-out pairs",
    "preference margin": "Reward margin, held-out pairs",
    "preference calibration_error": "Calibration error, held-out pairs",
} | {
    f"diversity {kind}_{n}": f"{text}, {n} word{'s' if n > 1 else ''}"
    for n in (1, 2, 3)
    for kind, text in (("distinct", "Distinct sequences"), ("ngram_entropy", "Entropy of sequences"))
}


def label(path: list[str]) -> str:
    """A readable name of a measure."""
    name = " ".join(path)
    return _NAMES.get(name, name.replace("_", " ").capitalize())


def interval(estimate: dict[str, Any]) -> str:
    """ "value ± se" of an estimate as JSON; empty where there is none."""
    if estimate.get("value") is None:
        return ""
    error = f" ± {number(estimate['se'], estimate['value'])}" if estimate.get("se") is not None else ""
    return number(estimate["value"]) + error


def data_summary(record: dict[str, Any]) -> dict[str, Any]:
    """Counts, dropped rows (reason, how many, which), and the fingerprint, from run.json's `data`."""
    data = record.get("data") or {}
    counts = {k: v for k, v in flat({k: v for k, v in data.items() if k not in _NOT_COUNTS}).items() if _is_count(v)}
    dropped = []
    for of, part in (("", data), (" (held-out data)", data.get("eval_data") or {})):
        for reason, found in (part.get("dropped") or {}).items():
            rows = _row_numbers(found.get("rows") if isinstance(found, dict) else found)
            many = found.get("count", len(rows)) if isinstance(found, dict) else len(rows) or int(found or 0)
            if many:
                listed = ", ".join(map(str, rows[:12])) + (", …" if len(rows) > 12 else "")
                dropped.append((reason + of, many, listed))
    return {"counts": counts, "dropped": dropped, "fingerprint": data.get("fingerprint")}


def learnt(record: dict[str, Any], most: int = 40) -> dict[str, dict[str, str]]:
    """State -> name -> number, of what the method keeps for each name in the data; the lowest of very many."""
    found = {}
    for state, numbers in (record.get("learnt") or {}).items():
        ordered = sorted(numbers.items(), key=lambda item: item[1])
        found[state] = {("all labels" if len(ordered) == 1 else name): number(x) for name, x in ordered[:most]}
    return found


_NOT_COUNTS = frozenset({"dropped", "eval_data", "fingerprint", "paths", "names", "notes"})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _row_numbers(found: Any) -> list[Any]:
    """Rows of one file as they are, of several files with the file's name."""
    if isinstance(found, dict):
        if len(found) == 1:
            return list(next(iter(found.values())))
        return [f"{Path(file).name} {row}" for file, rows in found.items() for row in rows]
    return list(found) if isinstance(found, list) else []


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by a blank: {"train": {"pairs": 3}} -> {"train pairs": 3}."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix} {key}".strip()
        out |= flat(value, name) if isinstance(value, dict) else {name: value}
    return out


def number(x: float, like: float | None = None) -> str:
    """About three figures, never more than three decimals (those of `like`, if given), with a real minus sign."""
    if not math.isfinite(x):
        return "–"
    size = abs(x if like is None else like)
    if like is None and (size >= 1e6 or 0 < size < 0.0005):
        text = f"{x:.1e}"
    else:
        text = f"{x:,.{0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"
    return ("0" if x == 0 and like is None else text).replace("-", "−")


def signed(x: float) -> str:
    return ("+" if x > 0 else "") + number(x)


def _finite(x: Any) -> bool:
    return isinstance(x, int | float) and math.isfinite(x)
