"""All methods as parameters of a test: with their defaults and each key changed, and with annotations of the data."""

from __future__ import annotations

import pytest
from from_needs import TOYS_AND_METHODS, WITH_ANNOTATIONS

from prefopt import Method

EVERY = pytest.mark.parametrize("m", TOYS_AND_METHODS.values(), ids=TOYS_AND_METHODS)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def optional(m: Method) -> bool:
    return any(s.get("optional") or s.get("instead") for s in m.needs().values())


ALL = TOYS_AND_METHODS | WITH_ANNOTATIONS
EVERY_WAY = {k: (m, False) for k, m in ALL.items()}
EVERY_WAY |= {f"{k}, nothing optional": (m, True) for k, m in ALL.items() if optional(m)}
EVERY_WAY_OF_ALL = pytest.mark.parametrize(("m", "sparse"), EVERY_WAY.values(), ids=EVERY_WAY)
