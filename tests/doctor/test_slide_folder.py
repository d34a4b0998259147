import dataclasses

from g2l_plugin.doctor.slide_folder import check_slides, judge_packed, judge_slides


def test_slides_are_counted_and_the_first_is_read(settings, write_slide):
    for name in ("a/1.tiff", "b/2.tiff", ".trash/3.tiff"):
        write_slide(settings.slides_root / name, 256)
    (settings.slides_root / "a" / "._1.tiff").touch()
    (finding,) = judge_slides(settings, is_named=True)
    assert finding.mark == "ok"
    assert f"2 slides in {settings.slides_root}; 1.tiff has 256 x 256 px of 0.5 µm" in finding.fact


def test_a_first_slide_that_cannot_be_used_is_told(settings, write_slide):
    path = write_slide(settings.slides_root / "1.tiff", 256, mpp=None)
    (finding,) = judge_slides(settings, is_named=True)
    assert finding.mark == "warning" and "OVERWRITE_MPP" in finding.fact
    known = dataclasses.replace(settings, overwrite_mpp=0.25)
    assert judge_slides(known, is_named=True)[0].mark == "ok"
    path.write_bytes(b"no slide")
    (finding,) = judge_slides(settings, is_named=True)
    assert finding.mark == "warning" and "cannot open" in finding.fact


def test_a_named_folder_that_is_not_there_is_a_problem_and_the_default_a_hint(settings):
    (named,) = judge_slides(settings, is_named=True)
    (default,) = judge_slides(settings, is_named=False)
    assert (named.mark, default.mark) == ("problem", "warning")
    assert "SLIDES_ROOT=/path/to/slides" in named.advice == default.advice


def test_a_folder_without_slides_is_a_problem_that_names_their_endings(settings):
    settings.slides_root.mkdir()
    (settings.slides_root / "readme.txt").touch()
    (finding,) = judge_slides(settings, is_named=True)
    assert finding.mark == "problem" and ".svs" in finding.advice


def test_a_list_of_slides_is_read(settings, write_slide, tmp_path):
    write_slide(settings.slides_root / "1.tiff", 256)
    listed = tmp_path / "slides.txt"
    settings = dataclasses.replace(settings, slides=listed)
    assert [f.mark for f in check_slides(settings)] == ["ok", "problem"]
    listed.write_text("1.tiff\n2.tiff\n")
    assert "names 2 slides" in check_slides(settings)[1].fact


def test_packed_tiles_are_looked_for_in_a_folder_and_not_in_a_store(settings, tmp_path):
    assert judge_packed("s3://bucket/tiles").mark == "ok"
    packed = dataclasses.replace(settings, packed_root=str(tmp_path))
    (missing,) = check_slides(packed)
    assert missing.mark == "problem" and "g2l pack" in missing.advice
    (tmp_path / "pack.json").touch()
    assert check_slides(packed)[0].mark == "ok"
