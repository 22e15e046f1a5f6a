"""Marks of people for pictures: a sheet to fill, and the sheets that came back."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PrefoptError
from ..files import write_atomically

SHEET = "to-mark.csv"
GIVEN = "marks*.csv"


def write_sheet(folder: Path, pictures: Sequence[str], prompts: Sequence[str]) -> None:
    """`to-mark.csv`: one row per picture (its file in `folder`), the column mark empty. What is there stays."""
    if (folder / SHEET).exists():
        return
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["picture", "prompt", "mark"])
    rows.writerows([picture, prompt, ""] for picture, prompt in zip(pictures, prompts, strict=True))
    write_atomically(folder / SHEET, text.getvalue())


def read_marks(folder: Path, pictures: Sequence[str]) -> Tensor | None:
    """[n, K] marks of the pictures, averaged over the sheets; None where there is none yet.

    Every column beside picture and prompt is an objective (K of them), the same in all sheets. Raises PrefoptError for
    missing, unknown or double pictures, other columns, and marks that are no numbers.
    """
    sheets = sorted(folder.glob(GIVEN))
    if not sheets:
        return None
    read = [_sheet(path, pictures) for path in sheets]
    names = read[0][0]
    for path, (other, _) in zip(sheets, read, strict=True):
        if other != names:
            raise PrefoptError(f"{path} marks {', '.join(other)}, {sheets[0].name} marks {', '.join(names)}: all alike")
    return torch.stack([marks for _, marks in read]).mean(0)


def _sheet(path: Path, pictures: Sequence[str]) -> tuple[list[str], Tensor]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = csv.DictReader(file)
            columns, rows = read.fieldnames or [], list(read)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise PrefoptError(f"{path} cannot be read: {e}") from e
    names = [n for n in columns if n not in ("picture", "prompt")]
    if not names or "picture" not in columns:
        raise PrefoptError(f"{path}: needs the columns picture and mark (or one for each objective), as in {SHEET}")
    found: dict[str, list[float]] = {}
    known = set(pictures)
    for number, row in enumerate(rows, 2):
        picture = row["picture"]
        if None in row:
            raise PrefoptError(f"{path} line {number}: more fields than columns; quote a prompt that has a comma")
        if picture not in known or picture in found:
            why = "stands there twice" if picture in found else f"is no picture of {SHEET}"
            raise PrefoptError(f"{path} line {number}: {picture!r} {why}")
        found[picture] = [_number(row[n], f"{path} line {number}, {n}") for n in names]
    missing = [p for p in pictures if p not in found]
    if missing:
        raise PrefoptError(f"{path}: {len(missing)} pictures have no mark, the first is {missing[0]}")
    return names, torch.tensor([found[p] for p in pictures], dtype=torch.float64)


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise PrefoptError(f"{where}: {text!r} is no number")
    return value
