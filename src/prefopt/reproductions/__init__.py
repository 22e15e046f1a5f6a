"""Papers' headline claims in small: each module states its criterion, then measures, then is judged by it.

A module defines REPRODUCTION and is found by its file.
"""

from .claim import Check, Demand, Judgement, Reproduction
from .frame import Outcome, load_all, reproduce

__all__ = ["Check", "Demand", "Judgement", "Outcome", "Reproduction", "load_all", "reproduce"]
