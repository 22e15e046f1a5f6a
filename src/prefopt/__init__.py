"""prefopt: preference optimisation for language, vision-language, image and video models."""

from .errors import PrefoptError
from .objectives.compose import annotated, swap
from .objectives.loss import Loss, Term, Update, compare, over_groups, over_pairs, over_responses, over_tokens, prefer
from .objectives.method import Method, get_method, method, require
from .objectives.responses import Responses
from .objectives.scores import Scores

__version__ = "0.1.0"

__all__ = [
    "Loss",
    "Method",
    "PrefoptError",
    "Responses",
    "Scores",
    "Term",
    "Update",
    "annotated",
    "compare",
    "get_method",
    "method",
    "over_groups",
    "over_pairs",
    "over_responses",
    "over_tokens",
    "prefer",
    "require",
    "swap",
]
