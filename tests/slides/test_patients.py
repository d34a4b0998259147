import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.slides.patients import (
    clean_patient,
    find_barcode,
    hash_patient,
    is_patient_list,
    list_patients,
)

PATIENTS = st.from_regex(re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}", re.ASCII), fullmatch=True)


@given(st.text())
def test_a_clean_name_stays_as_it_is_and_spaces_around_it_do_not_matter(name):
    clean = clean_patient(name)
    assert clean_patient(clean) == clean == clean_patient(f" {name}\t")


@given(st.integers(0))
def test_a_number_is_the_same_patient_as_text_and_as_pandas_writes_it(number):
    assert clean_patient(f"{number}.0") == str(number) == clean_patient(f"{number}")


def test_other_names_are_other_patients():
    assert len({clean_patient(name) for name in ("7", "07", "7.5", "P7", "p7")}) == 5


@given(PATIENTS, st.sampled_from(["", "-01Z-00-DX1", "-01Z-00-DX1.4F3E.svs", "_12.png", " "]))
def test_a_barcode_of_any_length_and_case_is_of_its_patient(patient, rest):
    for name in (patient + rest, patient.lower() + rest, f"folder/{patient}{rest}"):
        assert find_barcode(name) == patient
        assert hash_patient(name) == hashlib.sha256(patient.encode()).hexdigest()[:16]


def test_what_is_no_barcode_is_a_name():
    for name in ("TCGA-A1-A0SB2-01", "XTCGA-A1-A0SB", "TCGA-A1", "P1", ""):
        assert find_barcode(name) == ""
    assert hash_patient(" 7.0") == hash_patient("7") != hash_patient("07")


@given(st.lists(st.text()))
def test_a_list_has_each_patient_once_and_says_if_others_are_unknown(names):
    listed = list_patients(names)
    assert listed == list_patients([*reversed(names), *names])
    assert ("unknown" in listed) == ("" in names)
    assert {hash_patient(name) for name in names if name} == {*listed} - {"unknown"}
    assert listed[:-1] == sorted(set(listed) - {listed[-1]}) if listed else not names
    assert is_patient_list(listed) == bool(names)


def test_another_file_is_no_list():
    for lines in ([], ["ann"], ["0" * 15], ["0" * 17], ["0" * 16, ""]):
        assert not is_patient_list(lines)
