from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.slides.patients import clean_patient


@given(st.text())
def test_a_clean_name_stays_as_it_is_and_spaces_around_it_do_not_matter(name):
    clean = clean_patient(name)
    assert clean_patient(clean) == clean == clean_patient(f" {name}\t")


@given(st.integers(0))
def test_a_number_is_the_same_patient_as_text_and_as_pandas_writes_it(number):
    assert clean_patient(f"{number}.0") == str(number) == clean_patient(f"{number}")


def test_other_names_are_other_patients():
    assert len({clean_patient(name) for name in ("7", "07", "7.5", "P7", "p7")}) == 5
