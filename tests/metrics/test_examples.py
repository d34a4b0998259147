import doctest

import pytest

from g2l_plugin.metrics import cka, few_shot, invariance, knn, robustness


@pytest.mark.parametrize(
    "module", [cka, few_shot, invariance, knn, robustness], ids=lambda module: module.__name__
)
def test_examples_in_docstrings_run(module):
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0
