"""Annotations whose values are names (annotator, domain, user): how many a method has to tell apart."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..data.example import ENUMERATED
from ..errors import PrefoptError
from ..objectives.method import Method

log = logging.getLogger("prefopt")
MANY = 12
"""Names that are logged one by one; of more only the range."""


def with_names(method: Method, data: Mapping[str, Any]) -> Method:
    """`method` with the numbers of names filled in that it leaves to the data, whose record is `data`.

    PrefoptError where a name that it asks for stands in some rows only, where it has room for fewer names than there
    are, and where separate held-out data has names that are not trained on (a share held out at random: a warning).
    """
    names = data.get("names") or {}
    counted = method.counted({n: len(found) for n, found in names.items()}, data.get("ranges") or {})
    needs = counted.needs()
    for note in sorted(ENUMERATED):
        if (spec := needs.get(f"notes:{note}")) is None:
            continue
        if count := (data.get("incomplete_notes") or {}).get(note):
            raise PrefoptError(
                f"{method.name}: '{note}' stands in {count} rows only, others lack it: give it in every row, of "
                "training and held-out data, or remove the column"
            )
        found = names.get(note, [])
        if "below" in spec and spec["below"] < len(found):
            raise PrefoptError(
                f"{method.name} has room for {spec['below']} names in '{note}', the data has {len(found)} "
                f"({_listed(found)}): set that number of the method to {len(found)}, or leave it to the data if it can be"
            )
        if unknown := (data.get("names_held_out_only") or {}).get(note):
            _told(method, note, unknown, bool(data.get("eval_data")))
    return counted


def _told(method: Method, note: str, unknown: list[str], own_file: bool) -> None:
    who = f"{len(unknown)} name(s) of '{note}' ({_listed(unknown)}) occur in held-out data only"
    if own_file:
        raise PrefoptError(f"{method.name}: {who}: nothing is learnt about them; remove their rows from data.eval_path")
    log.warning("%s: %s: nothing is learnt about them, they keep what the method starts from", method.name, who)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def learnt(
    states: Mapping[str, Tensor], needs: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """State -> name -> number, for states that hold one number for each name of an annotation."""
    found = {}
    for state, values in states.items():
        if note := needs.get(f"states:{state}", {}).get("of"):
            names = (data.get("names") or {}).get(note) or []
            numbers = values.detach().flatten().tolist()
            found[state] = dict(zip(names if len(names) == len(numbers) else map(str, range(len(numbers))), numbers))
    return found


def to_log(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The same as metrics: each name while they are few, else the least and the largest number."""
    logs: dict[str, float] = {}
    for state, numbers in found.items():
        if len(numbers) == 1:
            logs[state] = next(iter(numbers.values()))
        elif len(numbers) <= MANY:
            logs |= {f"{state}/{name}": x for name, x in numbers.items()}
        else:
            logs |= {f"{state}/least": min(numbers.values()), f"{state}/largest": max(numbers.values())}
    return logs
