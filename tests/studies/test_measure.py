"""Win rates by scores."""

import numpy as np
import pytest

from prefopt.errors import PrefoptError
from prefopt.studies.measure import wins


def test_ties_count_one_half_and_missing_scores_are_missing() -> None:
    found = wins([1.0, 2.0, 3.0, 4.0, float("nan")], [2.0, 2.0, 1.0, float("nan"), 1.0])
    np.testing.assert_array_equal(found, [0.0, 0.5, 1.0, np.nan, np.nan])


def test_fewer_scores_than_answers_are_refused() -> None:
    with pytest.raises(PrefoptError, match="3 scores are to be compared with 2"):
        wins([1.0, 2.0, 3.0], [1.0, 2.0])
