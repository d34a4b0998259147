import pytest

from g2l_plugin.encoders.encoder import Provenance
from g2l_plugin.publishing.licenses import license_of


def derive(teacher, start):
    """Derives a student's licence from those of its teacher and start; None is random weights."""
    return license_of(
        (role, Provenance(role, license=license, pretrained=license is not None))
        for role, license in (("teacher", teacher), ("start", start))
    )


@pytest.mark.parametrize(
    ("teacher", "start", "expected"),
    [
        ("apache-2.0", "apache-2.0", "apache-2.0"),
        ("mit", "apache-2.0", "apache-2.0"),
        ("mit", "mit", "mit"),
        ("mit", None, "mit"),
        ("cc-by-4.0", "mit", "cc-by-4.0"),
        (None, None, "apache-2.0"),
    ],
)
def test_of_permissive_licences_the_one_with_most_conditions_applies(teacher, start, expected):
    assert derive(teacher, start).identifier == expected
    assert derive(teacher, start).restrictions == ()


@pytest.mark.parametrize(
    ("teacher", "start", "expected", "said"),
    [
        (
            "cc-by-nc-4.0",
            "apache-2.0",
            "cc-by-nc-4.0",
            "The teacher, teacher, does not allow commercial",
        ),
        (
            "apache-2.0",
            "cc-by-nc-sa-4.0",
            "cc-by-nc-sa-4.0",
            "The start, start, does not allow commercial",
        ),
        ("cc-by-nc-nd-4.0", "mit", "other", "does not allow sharing derivatives"),
        ("other", "mit", "other", "has the licence 'other': read its card"),
        ("", "mit", "other", "has no licence on record"),
    ],
)
def test_restrictions_are_kept_and_reported(teacher, start, expected, said):
    settled = derive(teacher, start)
    assert settled.identifier == expected
    assert said in " ".join(settled.restrictions)
