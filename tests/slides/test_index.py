import contextlib
import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import damage
from PIL import Image

from g2l_plugin.errors import UserError
from g2l_plugin.files import printable
from g2l_plugin.slides import indexing
from g2l_plugin.slides.cohort import read_cohort
from g2l_plugin.slides.index import open_index, summarize_index
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.slide import SlideError
from g2l_plugin.slides.slide_source import SlideTiles
from g2l_plugin.slides.tile_grid import TileGrid

GRID = TileGrid(64, 64, min_sharpness=0)


@pytest.fixture
def slides(tmp_path, write_slide):
    for number in range(4):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 384 + 64 * number)
    return tmp_path / "slides"


def outcomes(index):
    return {s.slide: r.problem or "used" for s, r in zip(index.cohort, index.records, strict=True)}


def stamps(folder):
    return {p.name: p.stat().st_mtime_ns for p in (folder / "slides").iterdir()}


def test_an_index_contains_cohort_tables_thumbnails_summary_and_page(tmp_path, slides):
    index = build_index(tmp_path / "index", GRID, slides)
    assert [slide.slide for slide in index.cohort] == [f"{n}.tiff" for n in range(4)]
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == [
        ".lock",
        "cohort.csv",
        "index.html",
        "index.json",
        "slides",
        "slides.csv",
        "thumbnails",
    ]
    rows = list(csv.DictReader((tmp_path / "index" / "slides.csv").open()))
    assert [int(row["tiles"]) for row in rows] == [record.tiles for record in index.records]
    assert all(row["outcome"] == "used" and float(row["mpp"]) == 0.5 for row in rows)
    assert all(int(row["bytes"]) == (slides / row["slide"]).stat().st_size for row in rows)
    for slide, record in zip(index.load(), index.records, strict=True):
        assert slide.xy.shape == (record.tiles, 2) and record.tiles > 5
    pictures = sorted((tmp_path / "index" / "thumbnails").iterdir())
    assert len(pictures) == 4 and all(max(Image.open(p).size) == 600 for p in pictures)
    page = (tmp_path / "index" / "index.html").read_text(encoding="utf-8")
    assert all(f"thumbnails/{picture.name}" in page for picture in pictures)


def test_indexed_slides_are_not_indexed_again(tmp_path, slides):
    first = build_index(tmp_path / "index", GRID, slides)
    before = stamps(tmp_path / "index")
    second = build_index(tmp_path / "index", GRID, slides)
    assert stamps(tmp_path / "index") == before
    assert second.records == first.records
    for a, b in zip(first.load(), second.load(), strict=True):
        np.testing.assert_array_equal(a.xy, b.xy)


def test_the_cohort_does_not_change_when_slides_are_added(tmp_path, slides, write_slide):
    first = build_index(tmp_path / "index", GRID, slides, n_slides=2)
    write_slide(slides / "9.tiff", 320)
    assert build_index(tmp_path / "index", GRID, slides, n_slides=2).cohort == first.cohort
    assert len(build_index(tmp_path / "index", GRID, slides, n_slides=5).cohort) == 5


def test_slides_that_were_added_are_said_and_taken_if_the_cohort_is_removed(
    tmp_path, slides, write_slide, warned
):
    first = build_index(tmp_path / "index", GRID, slides)
    assert build_index(tmp_path / "index", GRID, slides).cohort == first.cohort
    assert not warned
    for name in ("8.tiff", "9.tiff"):
        write_slide(slides / name, 320)
    before = stamps(tmp_path / "index")
    assert build_index(tmp_path / "index", GRID, slides).cohort == first.cohort
    assert "2 slides here are not in the cohort" in warned[0]
    assert f"remove {tmp_path / 'index' / 'cohort.csv'}" in warned[0]
    (tmp_path / "index" / "cohort.csv").unlink()
    assert len(build_index(tmp_path / "index", GRID, slides).cohort) == 6
    assert before.items() <= stamps(tmp_path / "index").items()


def test_an_edited_list_is_chosen_from_again_and_a_moved_one_is_not(tmp_path, slides, warned):
    (tmp_path / "list.txt").write_text("0.tiff\n")
    assert len(build_index(tmp_path / "index", GRID, slides, tmp_path / "list.txt").cohort) == 1
    (tmp_path / "list.txt").rename(tmp_path / "moved.txt")
    build_index(tmp_path / "index", GRID, slides, tmp_path / "moved.txt")
    assert not warned
    (tmp_path / "moved.txt").write_text("0.tiff\n1.tiff\n3.tiff\n")
    index = build_index(tmp_path / "index", GRID, slides, tmp_path / "moved.txt")
    assert outcomes(index) == dict.fromkeys(["0.tiff", "1.tiff", "3.tiff"], "used")
    assert "chosen again: another list of slides" in warned[0]
    build_index(tmp_path / "index", GRID, slides, ("0.tiff", "1.tiff"))
    del warned[:]
    build_index(tmp_path / "index", GRID, slides, ["0.tiff", "1.tiff"])
    assert not warned


def test_a_changed_slide_or_grid_is_indexed_again_but_not_a_copied_slide(
    tmp_path, slides, write_slide
):
    build_index(tmp_path / "index", GRID, slides)
    before = stamps(tmp_path / "index")
    write_slide(slides / "1.tiff", 768)
    os.utime(slides / "2.tiff")  # a copy: another time, the same content
    index = build_index(tmp_path / "index", GRID, slides)
    assert index.records[1].width == 768
    assert index.records[2].modified == (slides / "2.tiff").stat().st_mtime_ns
    assert not (tmp_path / "index" / "thumbnails" / "none").exists()
    changed = [name for name, stamp in stamps(tmp_path / "index").items() if stamp != before[name]]
    assert sorted(name[0] for name in changed) == ["1", "2"]
    assert open_index(tmp_path / "index", GRID, slides).records == index.records
    wider = build_index(tmp_path / "index", TileGrid(128, 128, min_sharpness=0), slides)
    assert wider.records[0].tiles < index.records[0].tiles / 2
    with pytest.raises(UserError, match="4 of 4 slides are not indexed, or have changed since"):
        open_index(tmp_path / "index", GRID, slides)


def test_overwrite_mpp_reindexes_only_slides_without_mpp(tmp_path, slides, write_slide):
    write_slide(slides / "unknown.tiff", 320, mpp=None)
    index = build_index(tmp_path / "index", GRID, slides)
    assert outcomes(index)["unknown.tiff"] == "no resolution"
    before = stamps(tmp_path / "index")
    overwritten = TileGrid(64, 64, overwrite_mpp=0.5, min_sharpness=0)
    index = build_index(tmp_path / "index", overwritten, slides)
    assert set(outcomes(index).values()) == {"used"}
    changed = [name for name, stamp in stamps(tmp_path / "index").items() if stamp != before[name]]
    assert [name[:7] for name in changed] == ["unknown"]


def test_a_list_gives_slides_their_own_mpp_and_a_changed_one_is_indexed_again(
    tmp_path, slides, write_slide
):
    write_slide(slides / "unknown.tiff", 320, mpp=None)
    for mpp in (0.25, 0.5):
        (tmp_path / "list.csv").write_text(
            f"slide,mpp\n0.tiff,\n1.tiff,{mpp}\nunknown.tiff,{2 * mpp}\n"
        )
        index = build_index(tmp_path / "index", GRID, slides, tmp_path / "list.csv")
        assert [record.mpp for record in index.records] == [0.5, mpp, 2 * mpp * (mpp < 0.5)]
        assert not any(record.mpp_overwritten for record in index.records)
        if mpp == 0.25:
            before = stamps(tmp_path / "index")
            assert index.records[1].plan.level0_size == (128, 128)
    assert outcomes(index)["unknown.tiff"] == "too coarse"
    changed = [name for name, stamp in stamps(tmp_path / "index").items() if stamp != before[name]]
    assert sorted(name[0] for name in changed) == ["1", "u"]
    rows = list(csv.DictReader((tmp_path / "index" / "slides.csv").open()))
    assert [float(row["mpp"]) for row in rows] == [0.5, 0.5, 0]


def test_bad_slides_are_left_out_and_counted(tmp_path, slides, write_slide):
    (slides / "3.tiff").unlink()
    whole = (slides / "2.tiff").read_bytes()
    (slides / "cut off.svs").write_bytes(whole[:1000])
    (slides / "döppelt.tiff").write_bytes(whole)
    (slides / "empty.svs").write_bytes(b"")
    write_slide(slides / "coarse.tiff", 320, mpp=1.0)
    write_slide(slides / "unknown.tiff", 320, mpp=None)
    write_slide(slides / "glass.tiff", 400, tissue=False)
    index = build_index(tmp_path / "index", TileGrid(64, 64, min_sharpness=0), slides, workers=2)
    assert outcomes(index) == {
        "0.tiff": "used",
        "1.tiff": "used",
        "2.tiff": "used",
        "döppelt.tiff": "duplicate",
        "cut off.svs": "cannot be opened",
        "empty.svs": "cannot be opened",
        "coarse.tiff": "too coarse",
        "unknown.tiff": "no resolution",
        "glass.tiff": "used",
    }
    assert index.counts()["no tissue"] == 1 and index.counts()["used"] == 3
    assert {slide.path.name for slide in index.load()} == {"0.tiff", "1.tiff", "2.tiff"}
    with pytest.raises(
        UserError, match=r"4 of 9 slides cannot be used, more than the 1.0%.*coarse"
    ):
        index.check_losses(0.01)
    index.check_losses(0.5)
    page = (tmp_path / "index" / "index.html").read_text(encoding="utf-8")
    assert page.index("cannot be opened") < page.index("2.tiff")
    kept = build_index(tmp_path / "index", GRID, slides, keep_duplicates=True)
    assert outcomes(kept)["döppelt.tiff"] == "used"


def test_slides_of_any_name_are_indexed(tmp_path, write_slide):
    names = [b"caf\xe9 2.tiff", "病".encode() * 78 + b".tiff", b"new\nline.tiff", b" lead.tiff"]
    names += ["sep\u2028x.tiff".encode(), b'q"u,o.tiff', b"[x]*.tiff", b"%20#?.tiff"]
    names = sorted(map(os.fsdecode, names))
    for number, name in enumerate(names):
        write_slide(tmp_path / "slide.tiff", 320 + 64 * number)
        (tmp_path / "slides").mkdir(exist_ok=True)
        (tmp_path / "slide.tiff").rename(tmp_path / "slides" / name)
    index = build_index(tmp_path / "index", GRID, tmp_path / "slides")
    assert outcomes(index) == dict.fromkeys(names, "used")
    assert open_index(tmp_path / "index", GRID, tmp_path / "slides").records == index.records
    rows = list(
        csv.DictReader((tmp_path / "index" / "slides.csv").open(encoding="utf-8", newline=""))
    )
    assert [row["slide"] for row in rows] == [printable(name) for name in names]
    assert "caf\\xe9 2.tiff" in [row["slide"] for row in rows]
    (tmp_path / "list.txt").write_bytes(b"caf\xe9 2.tiff\n")
    listed = build_index(tmp_path / "listed", GRID, tmp_path / "slides", tmp_path / "list.txt")
    assert outcomes(listed) == {os.fsdecode(b"caf\xe9 2.tiff"): "used"}
    tiles = SlideTiles(listed.load(), (64, 64))
    assert len(tiles.fingerprint()) == 64
    assert "caf\\xe9" in printable(tiles.locate(np.arange(2)).to_csv())


def test_a_name_that_is_no_file_name_is_missing(tmp_path, slides):
    index = build_index(tmp_path / "index", GRID, slides, ["0.tiff", "x" * 300], max_lost=1)
    assert outcomes(index) == {"0.tiff": "used", "x" * 300: "missing"}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "out of memory"),
        (SlideError("too coarse", "Level 0 has not arrived."), "Level 0 has not arrived"),
    ],
)
def test_what_failed_is_told_and_tried_again(tmp_path, slides, monkeypatch, error, cause):
    index_slide = indexing.index_slide

    def index_or_fail(path, *args):
        if path.name == "1.tiff":
            raise error
        return index_slide(path, *args)

    monkeypatch.setattr(indexing, "index_slide", index_or_fail)
    record = build_index(tmp_path / "index", GRID, slides).records[1]
    assert cause in record.message and "damaged" not in record.message
    before = stamps(tmp_path / "index")
    monkeypatch.setattr(indexing, "index_slide", index_slide)
    index = build_index(tmp_path / "index", GRID, slides)
    assert index.counts() == {"used": 4}
    changed = [name for name, stamp in stamps(tmp_path / "index").items() if stamp != before[name]]
    assert [name[0] for name in changed] == ["1"]


@pytest.mark.parametrize("later", [0, 1])
def test_a_repaired_slide_keeps_no_damage(tmp_path, slides, write_slide, later):
    path = write_slide(slides / "1.tiff", 768, levels=1)
    whole, stat = path.read_bytes(), path.stat()
    damage(path, 0, [14])
    assert build_index(tmp_path / "index", GRID, slides).records[1].damaged > 0
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + later))
    index = build_index(tmp_path / "index", GRID, slides)
    assert index.records[1].damaged == 0
    assert index.records == build_index(tmp_path / "new", GRID, slides).records


def test_a_slide_that_kills_its_process_is_left_out(tmp_path, slides, monkeypatch):
    index_slide = indexing.index_slide

    def index_or_die(path, grid, mpp):
        if path.name == "1.tiff":
            os.kill(os.getpid(), signal.SIGKILL)
        return index_slide(path, grid, mpp)

    monkeypatch.setattr(indexing, "index_slide", index_or_die)
    index = build_index(tmp_path / "index", GRID, slides, workers=2)
    assert outcomes(index)["1.tiff"] == "crashes the reader"
    assert index.counts()["used"] == 3


def test_a_slide_that_hangs_is_left_out_and_tried_again(tmp_path, slides, monkeypatch):
    index_slide = indexing.index_slide

    def index_or_hang(path, grid, mpp):
        if path.name == "1.tiff":
            time.sleep(1000)
        return index_slide(path, grid, mpp)

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "index_slide", index_or_hang)
        index = build_index(tmp_path / "index", GRID, slides, workers=2, slide_timeout=2 / 60)
    assert outcomes(index) == dict.fromkeys(outcomes(index), "used") | {"1.tiff": "timed out"}
    assert "took longer than 0.0333333 minutes" in index.records[1].message
    assert build_index(tmp_path / "index", GRID, slides).counts() == {"used": 4}


def test_a_limit_of_no_time_is_an_error(tmp_path, slides):
    with pytest.raises(UserError, match="`slide_timeout` is 0 minutes"):
        build_index(tmp_path / "index", GRID, slides, slide_timeout=0)


def test_a_folder_that_disappears_stops_indexing_which_continues_later(
    tmp_path, slides, monkeypatch
):
    index_slide = indexing.index_slide

    def index_and_vanish(path, grid, mpp):
        result = index_slide(path, grid, mpp)
        if path.name == "1.tiff":
            slides.rename(tmp_path / "unmounted")
        return result

    monkeypatch.setattr(indexing, "index_slide", index_and_vanish)
    with pytest.raises(UserError, match=r"disappeared after \d of 4 slides.*continues from there"):
        build_index(tmp_path / "index", GRID, slides, workers=1)
    (tmp_path / "unmounted").rename(slides)
    monkeypatch.setattr(indexing, "index_slide", index_slide)
    assert build_index(tmp_path / "index", GRID, slides).counts() == {"used": 4}


def test_shards_together_equal_the_whole_index(tmp_path, slides):
    whole = build_index(tmp_path / "whole", GRID, slides)
    assert build_index(tmp_path / "parts", GRID, slides, shard=(1, 3)) is None
    assert not (tmp_path / "parts" / "slides.csv").exists()
    with pytest.raises(UserError, match=r"2 of 4 slides are not indexed.*slides 2-3 of"):
        summarize_index(tmp_path / "parts", GRID, slides)
    for part in (2, 3):
        build_index(tmp_path / "parts", GRID, slides, shard=(part, 3))
    merged = summarize_index(tmp_path / "parts", GRID, slides)
    assert merged.records == whole.records
    for name in ("slides.csv", "cohort.csv", "index.html"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.fixture
def slow_index(tmp_path, slides):
    """A process that makes the index slowly; it has written a table."""
    program = (
        "import time\n"
        "from g2l_plugin.slides import index_files, indexing\n"
        "write = index_files.pq.write_table\n"
        "def slow(table, path):\n"
        "    open(path, 'wb').write(b'half')\n"
        "    time.sleep(0.5)\n"
        "    write(table, path)\n"
        "index_files.pq.write_table = slow\n"
        f"indexing.build_index({str(tmp_path / 'index')!r}, "
        f"indexing.TileGrid(64, 64, min_sharpness=0), {str(slides)!r}, workers=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    tables = tmp_path / "index" / "slides"
    deadline = time.monotonic() + 60
    while not (tables.is_dir() and list(tables.glob("*.parquet")) and list(tables.glob(".*"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_run_leaves_no_partial_file_and_the_next_continues(tmp_path, slides, slow_index):
    tables = tmp_path / "index" / "slides"
    os.killpg(slow_index.pid, signal.SIGKILL)
    slow_index.wait()
    done = stamps(tmp_path / "index")
    assert list(tables.glob(".*.part"))
    index = build_index(tmp_path / "index", GRID, slides)
    assert index.counts() == {"used": 4}
    assert sorted(p.suffix for p in tables.iterdir()) == [".parquet"] * 4
    for name, stamp in stamps(tmp_path / "index").items():
        assert name not in done or stamp == done[name]


def test_the_second_of_two_runs_says_that_it_waits_and_both_end_well(
    tmp_path, slides, slow_index, warned
):
    index = build_index(tmp_path / "index", GRID, slides)
    assert index.counts() == {"used": 4}
    assert f"Another process is at work in {tmp_path / 'index'}: waiting" in warned[0]
    assert slow_index.wait() == 0


def test_a_dead_run_is_not_waited_for_even_if_its_workers_live(
    tmp_path, slides, slow_index, warned
):
    slow_index.kill()
    slow_index.wait()
    assert build_index(tmp_path / "index", GRID, slides).counts() == {"used": 4}
    assert not warned


def test_a_damaged_table_is_made_again(tmp_path, slides):
    index = build_index(tmp_path / "index", GRID, slides)
    table = next((tmp_path / "index" / "slides").iterdir())
    table.write_bytes(table.read_bytes()[:100])
    assert build_index(tmp_path / "index", GRID, slides).records == index.records


def test_a_gdc_manifest_shows_what_to_download_and_what_is_incomplete(tmp_path, slides):
    lines = ["id\tfilename\tmd5\tsize\tstate"]
    for number in range(3):
        name = f"TCGA-A1-000{number}-01Z-00-DX1.tiff"
        size = (slides / f"{number}.tiff").stat().st_size
        lines.append(f"u{number}\t{name}\tm{number}\t{size + (number == 1)}\treleased")
        (tmp_path / "gdc" / f"u{number}").mkdir(parents=True)
        shutil.copy(slides / f"{number}.tiff", tmp_path / "gdc" / f"u{number}" / name)
    (tmp_path / "manifest.txt").write_text("\n".join(lines))
    moved = tmp_path / "gdc" / "u2" / "TCGA-A1-0002-01Z-00-DX1.tiff"
    content = moved.read_bytes()
    moved.unlink()
    arguments = (tmp_path / "index", GRID, tmp_path / "gdc", tmp_path / "manifest.txt")
    with pytest.raises(UserError, match=r"1 of the 3 slides.*gdc-client download -m .*manifest"):
        build_index(*arguments)
    wanted = (tmp_path / "index" / "gdc_manifest.txt").read_text().splitlines()
    assert wanted[1:] == [lines[3]]
    moved.write_bytes(content)
    index = build_index(*arguments)
    assert [record.problem for record in index.records] == ["", "incomplete", ""]
    assert {slide.centre for slide in read_cohort(tmp_path / "index" / "cohort.csv")} == {"A1"}


def test_slides_in_a_list_must_exist(tmp_path, slides):
    with pytest.raises(UserError, match=r"1 of the 2 slides chosen are not in .*gone\.tiff"):
        build_index(tmp_path / "index", GRID, slides, ["0.tiff", "gone.tiff"])
    assert not (tmp_path / "index" / "cohort.csv").exists()


@pytest.mark.parametrize(("name", "said"), [("gone", "does not exist"), ("one.svs", "is a file")])
@pytest.mark.parametrize("listed", [None, ["a.tiff"]])
def test_without_a_folder_of_slides_no_index_is_begun(tmp_path, name, said, listed):
    (tmp_path / "one.svs").write_bytes(b"")
    with pytest.raises(UserError, match=f"{name} {said}"):
        build_index(tmp_path / "index", TileGrid(64, 64), tmp_path / name, listed)
    assert not (tmp_path / "index").exists()


def test_a_missing_index_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"no index in .*g2l index SLIDES"):
        open_index(tmp_path, GRID, tmp_path)


def test_damaged_settings_are_named(tmp_path, slides):
    build_index(tmp_path / "index", GRID, slides)
    (tmp_path / "index" / "index.json").write_text('{"cohort": ')
    with pytest.raises(UserError, match=r"index\.json is damaged .*Remove it"):
        build_index(tmp_path / "index", GRID, slides)


def test_the_settings_are_written(tmp_path, slides):
    build_index(tmp_path / "index", GRID, slides, n_slides=3, seed=5)
    settings = json.loads((tmp_path / "index" / "index.json").read_text())
    assert settings["cohort"]["seed"] == 5 and settings["cohort"]["n_slides"] == 3
    assert TileGrid(**settings["grid"]) == GRID
