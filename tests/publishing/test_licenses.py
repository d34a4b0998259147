import pytest

from g2l_plugin.encoders.encoder import Provenance
from g2l_plugin.encoders.known import KNOWN_ENCODERS
from g2l_plugin.errors import UserError
from g2l_plugin.publishing.licenses import check_license, license_of


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
        ("CC-BY-NC-4.0", "mit", "cc-by-nc-4.0", "does not allow commercial"),
        ("", "mit", "other", "has no licence on record"),
    ],
)
def test_restrictions_are_kept_and_reported(teacher, start, expected, said):
    settled = derive(teacher, start)
    assert settled.identifier == expected
    assert said in " ".join(settled.restrictions)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("MIT", "mit"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("Apache 2.0", "apache-2.0"),
        ("apache2", "apache-2.0"),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_refused_with_the_one_that_is_meant(given, meant):
    with pytest.raises(UserError, match=f"knows no licence '{given}'.*Did you mean {meant}[?]"):
        check_license(given)
    check_license(meant)


def test_licences_of_known_encoders_have_the_hubs_names_and_other_is_explained():
    for known in KNOWN_ENCODERS.values():
        if known.license is not None:
            check_license(known.license)
            origin = Provenance(known.source, license=known.license)
            said = " ".join(license_of([("teacher", origin)]).restrictions)
            non_commercial = "-nc" in known.license or known.license == "other"
            assert ("does not allow commercial use" in said) == non_commercial, known.name
