import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2l_plugin.errors import UserError
from g2l_plugin.slides.slide_list import ListedSlide, read_slide_list

A, B = "TCGA-AA-0001-01Z-00-DX1.svs", "TCGA-AA-0002-01Z-00-DX1.svs"


def read(tmp_path, text, encoding="utf-8"):
    (tmp_path / "list").write_bytes(text.encode(encoding))
    return read_slide_list(tmp_path / "list")


def facts(listed):
    """What is said of each slide, without the line."""
    return [
        {k: v for k, v in vars(slide).items() if k != "line" and v not in ("", None)}
        for slide in listed
    ]


@pytest.mark.parametrize(
    "text",
    [
        f'"slide","patient"\n"{A}","P1"\n"{B}","P2"\n',  # R, row.names = FALSE
        f'"","slide","patient"\n"1","{A}","P1"\n"2","{B}","P2"\n',  # R
        f"slide;patient\r\n{A};P1\r\n{B};P2\r\n;\r\n",  # Excel in Europe
        f"slide, patient\n{A}, P1\n{B}, P2\n",
        f"\ufeffSlide\tPatient ID\n{A}\tP1\n{B}\tP2\n\n",
        f"case_id,slide_id,label\nP1,{A},x\nP2,{B},y\n",  # CLAM
        f"# two slides\nslide,patient,\n{A},P1,\n{B},P2\t,,\n",
        f"slide,patient\r{A},P1\r{B},P2",  # an old Macintosh
        f"File ID\tFile Name\tCase ID\n\t{A}\tP1, P1\n\t{B}\tP2\n\tslides.xml\tP3\n",  # GDC
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_table_is_read_whatever_wrote_it(tmp_path, text, encoding):
    listed = read(tmp_path, text.removeprefix("\ufeff") if encoding == "utf-16" else text, encoding)
    assert facts(listed) == [{"name": A, "patient": "P1"}, {"name": B, "patient": "P2"}]


def test_a_gdc_manifest_and_a_trident_list_are_read(tmp_path):
    listed = read(tmp_path, f"filename\tid\tmd5\tsize\tstate\n{A}\tu1\tabc\t17\treleased\n")
    assert listed == [ListedSlide(2, A, id="u1", md5="abc", bytes=17)]
    listed = read(tmp_path, f"wsi,mpp\n{A},0.25\n{B},\n")
    assert [slide.mpp for slide in listed] == [0.25, None]


def test_numbers_are_read_as_pandas_and_spreadsheets_write_them(tmp_path):
    rows = [
        "a.svs,239735.0,0.25",
        'b.svs,"239,735",.5',
        "c.svs,,NA",
        'd.svs,nan,"0,25"',
        "e.svs,0,0",
    ]
    listed = read(tmp_path, "\n".join(["slide,bytes,mpp", *rows]))
    assert [slide.bytes for slide in listed] == [239735, 239735, None, None, None]
    assert [slide.mpp for slide in listed] == [0.25, 0.5, None, 0.25, None]


def test_lines_that_are_no_table_are_paths(tmp_path):
    listed = read(tmp_path, f'# my slides\n{A}\n\n  b c.svs\n#1.svs\nsep\u2028x.svs\n"q.svs"\nd')
    names = [A, "  b c.svs", "#1.svs", "sep\u2028x.svs", "q.svs", "d"]
    assert [slide.name for slide in listed] == names
    assert [slide.line for slide in listed] == [2, 4, 5, 6, 7, 8]


def test_names_that_are_not_utf8_are_as_in_a_folder(tmp_path):
    (tmp_path / "list").write_bytes(b"caf\xe9.svs\n")
    assert read_slide_list(tmp_path / "list")[0].name.encode("utf-8", "surrogateescape") == (
        b"caf\xe9.svs"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tfilename\tmd5\nu1\ta.svs\tabc\nu2\n", r"line 3 has 1 of 3 columns.*'md5'.*cut off"),
        ("slide,patient\n\na, b.svs,P1\n", r"line 3 has 3 of 2 columns.*quotes"),
        ("slide,bytes\na.svs,1\nb.svs,2 MB\n", r"line 3, column 'bytes' has '2 MB'.*whole number"),
        ("slide,bytes\na.svs,1.5\n", r"line 2, column 'bytes' has '1\.5'"),
        ("slide,MPP\na.svs,250\n", r"line 2, column 'MPP' has '250'.*microns per pixel"),
        ("slide,mpp\na.svs,-0.5\n", r"line 2, column 'mpp' has '-0\.5'"),
        ("slide,mpp\na.svs,inf\n", r"line 2, column 'mpp' has 'inf'"),
        ("slide,patient\n,P1\n", r"line 2, column 'slide' has ''.*path of a slide"),
        ('slide,patient\na.svs,P1\n"b.svs,P2\nc.svs,P3\n', r"line 3.*quote"),
        ("case;label\nP1;x\n", r"line 1 has the columns 'case', 'label'.*column 'slide'"),
        ("a\0b", "not text"),
    ],
)
def test_what_cannot_be_read_is_named_by_line_and_column(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


@given(st.text(), st.sampled_from(["", "slide,bytes,mpp\n", "id\tfilename\tsize\n", "slide;mpp\n"]))
def test_any_text_is_a_list_or_an_error_line(tmp_path_factory, text, header):
    path = tmp_path_factory.mktemp("list") / "list"
    path.write_bytes((header + text).encode("utf-8", "surrogatepass"))
    try:
        assert all(isinstance(slide, ListedSlide) for slide in read_slide_list(path))
    except UserError as error:
        assert re.search("line [0-9]|not text", str(error))
