import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.errors import UserError
from g2l_plugin.slides.cohort import (
    CohortSlide,
    choose_cohort,
    describe_slide,
    read_cohort,
    write_cohort,
)


def name(patient, section="DX1", sample="01Z", uuid="x"):
    return f"TCGA-A1-{patient}-{sample}-00-{section}.{uuid}.svs"


def names(cohort):
    return [slide.slide for slide in cohort]


def test_a_barcode_contains_patient_centre_and_section():
    slide = describe_slide("a folder/TCGA-CR-7395-01A-01-TS1.4a2f.svs")
    assert (slide.patient, slide.centre, slide.section) == ("TCGA-CR-7395", "CR", "TS1")
    slide = describe_slide("TCGA-BH-A0B1-01Z-00-DX1.svs")
    assert (slide.patient, slide.centre, slide.section) == ("TCGA-BH-A0B1", "BH", "DX1")
    assert describe_slide("slide 7.svs") == CohortSlide("slide 7.svs")


def test_one_slide_per_patient_and_diagnostic_before_frozen():
    slides = [name("0001", "TS1", "01A"), name("0001", "DX1"), name("0001", "BS1", "01A")]
    slides += [name("0002", "BS1", "01A"), name("0002", "TS1", "01A")]
    slides += [name("0003", "TS1", "11A"), name("0003", "BS1", "01A"), "unknown.svs", "other.svs"]
    cohort = choose_cohort(".", slides)
    assert names(cohort) == sorted([slides[1], slides[4], slides[6], "unknown.svs", "other.svs"])
    assert len(choose_cohort(".", slides, one_per_patient=False)) == len(slides)


def test_patients_with_a_diagnostic_slide_are_chosen_first():
    slides = [name(f"{n:04d}", "TS1", "01A") for n in range(5)]
    slides += [name(f"{n:04d}", "DX1") for n in range(5, 10)]
    for seed in range(5):
        assert names(choose_cohort(".", slides, n_slides=5, seed=seed)) == slides[5:]


def test_a_choice_is_seeded_and_independent_of_order_and_of_slides_not_chosen():
    slides = [name(f"{n:04d}") for n in range(30)]
    chosen = {tuple(names(choose_cohort(".", slides, n_slides=10, seed=s))) for s in range(6)}
    assert len(chosen) == 6
    first = names(choose_cohort(".", slides, n_slides=10))
    assert names(choose_cohort(".", slides[::-1], n_slides=10)) == first
    rest = [slide for slide in slides if slide not in first]
    assert names(choose_cohort(".", first + rest[:7], n_slides=10)) == first


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60, unique=True), st.integers(1, 60))
def test_a_larger_choice_contains_a_smaller_one(numbers, n_slides):
    slides = [name(f"{n:04d}") for n in numbers]
    small = set(names(choose_cohort(".", slides, n_slides=n_slides)))
    assert len(small) == min(n_slides, len(slides))
    assert small <= set(names(choose_cohort(".", slides, n_slides=n_slides + 3)))


def test_a_folder_is_searched_with_its_subfolders_and_odd_names(tmp_path):
    for path in ("a/ä slide.svs", "b.TIFF", "c.txt", "a/.partial.svs", "._b.svs"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    assert names(choose_cohort(tmp_path)) == ["a/ä slide.svs", "b.TIFF"]


def test_a_written_cohort_is_read_and_chosen_unchanged(tmp_path):
    slides = [name(f"{n:04d}") for n in range(9)] + ["with, comma and ü.svs"]
    cohort = choose_cohort(".", slides, n_slides=6, seed=3)
    write_cohort(tmp_path / "cohort.csv", cohort)
    assert read_cohort(tmp_path / "cohort.csv") == cohort
    assert choose_cohort(".", tmp_path / "cohort.csv", n_slides=1000, seed=8) == cohort


def test_a_list_can_give_patients_and_centres(tmp_path):
    (tmp_path / "list.csv").write_text(
        "slide,patient,centre\na.svs,P1,north\nb.svs,P1,north\nc.svs,P2,south\n"
    )
    cohort = choose_cohort(".", tmp_path / "list.csv")
    assert len(cohort) == 2
    assert [(slide.patient, slide.centre) for slide in cohort] == [("P1", "north"), ("P2", "south")]
    (tmp_path / "list.txt").write_text("a.svs\n\nb c.svs\n")
    assert names(choose_cohort(".", tmp_path / "list.txt")) == ["a.svs", "b c.svs"]


def test_a_gdc_manifest_gives_path_size_and_checksum(tmp_path):
    (tmp_path / "manifest.txt").write_text(
        "id\tfilename\tmd5\tsize\tstate\n"
        f"u1\t{name('0001')}\tabc\t17\treleased\n"
        f"u2\t{name('0002')}\tdef\t18\treleased\n"
        "u3\tclinical.xml\tghi\t19\treleased\n"
    )
    (tmp_path / name("0002")).write_bytes(b"")  # downloaded without its folder
    cohort = choose_cohort(tmp_path, tmp_path / "manifest.txt")
    assert names(cohort) == [name("0002"), f"u1/{name('0001')}"]
    assert [(slide.bytes, slide.md5) for slide in cohort] == [(18, "def"), (17, "abc")]


def test_a_missing_or_empty_source_gives_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="does not exist.*SLIDES_ROOT"):
        choose_cohort(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"No slides in .*\.svs"):
        choose_cohort(tmp_path)
    with pytest.raises(UserError, match="cannot be read.*GDC manifest"):
        choose_cohort(tmp_path, tmp_path / "nolist.csv")
    (tmp_path / "binary.csv").write_bytes(b"PK\x03\x04\x14\x00\x06\x00")  # an Excel file
    with pytest.raises(UserError, match="cannot be read"):
        choose_cohort(tmp_path, tmp_path / "binary.csv")


def test_a_slide_that_is_listed_twice_counts_once(tmp_path):
    (tmp_path / "list.txt").write_text("a.svs\n./a.svs\na.svs\nb.svs\n")
    for source in (tmp_path / "list.txt", ["a.svs", "./a.svs", "b.svs"]):
        assert names(choose_cohort(".", source, one_per_patient=False)) == ["a.svs", "b.svs"]
    (tmp_path / "list.csv").write_text("slide,mpp\na.svs,0.25\na.svs,0.5\n")
    with pytest.raises(UserError, match=r"a\.svs again in line 3, with other values"):
        choose_cohort(".", tmp_path / "list.csv")


@pytest.mark.parametrize("n_slides", [0, -1])
def test_a_choice_of_no_slides_is_refused(n_slides):
    with pytest.raises(UserError, match=r"cannot be chosen\. Give 1 or more"):
        choose_cohort(".", ["a.svs", "b.svs"], n_slides=n_slides)


def test_names_of_a_list_are_found_in_the_folder(tmp_path):
    for path in ("one.svs", "sub/two.1f2e.svs", "three.tiff", " four.svs"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    expected = [" four.svs", "one.svs", "sub/two.1f2e.svs", "three.tiff"]
    listed = [tmp_path / "one.svs", "two.1f2e", ".\\three.tiff", " four.svs"]
    (tmp_path / "list.txt").write_text("\r\n".join(map(str, listed)))
    assert names(choose_cohort(tmp_path, tmp_path / "list.txt")) == expected
    (tmp_path / "one.tif").write_bytes(b"")
    (tmp_path / "list.txt").write_text("one\n")
    with pytest.raises(UserError, match=r"Line 1 .* names one, but .*ending"):
        choose_cohort(tmp_path, tmp_path / "list.txt")


def test_two_spellings_of_a_patient_are_one_patient(tmp_path):
    (tmp_path / "list.csv").write_text(
        "slide,patient\na.svs,P1\nb.svs,P1 \nc.svs,7\nd.svs,7.0\ne.svs,\nf.svs,NA\n"
    )
    cohort = choose_cohort(".", tmp_path / "list.csv")
    assert sorted(slide.patient for slide in cohort) == ["", "", "7", "P1"]


@given(st.lists(st.binary(min_size=1).filter(lambda name: not {0, 47} & {*name}), min_size=1))
def test_any_name_is_read_as_it_was_written(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("cohort") / "cohort.csv"
    slides = [CohortSlide(os.fsdecode(name + b".svs"), mpp=0.25) for name in found]
    write_cohort(path, slides)
    assert read_cohort(path) == slides
