import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.publishing.paths import without_paths

NAMES = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(NAMES, min_size=1), st.sampled_from(["", "local-dir:"]))
def test_of_an_absolute_path_the_last_part_is_left(parts, scheme):
    assert without_paths(f"{scheme}/{'/'.join(parts)}") == scheme + parts[-1]


@pytest.mark.parametrize(
    "value", ["data/slides", "hf-hub:org/name", "s3://bucket/tiles", "a / b", "", 0.5, None, True]
)
def test_what_is_no_path_of_the_machine_is_kept(value):
    assert without_paths([{"x": (value,)}]) == [{"x": (value,)}]


def test_a_home_is_not_named():
    assert without_paths("~/slides/brca/") == "brca"
    assert without_paths("/") == ""
