"""Tiny worlds, built once for all tests of the folder."""

import pytest

from prefopt.worlds import reviews


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="session")
def tiny_reviews(cache):
    return reviews.build(cache, size="tiny", progress=False)
