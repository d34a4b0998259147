import re
import subprocess
from pathlib import Path

import h5py
import pytest
from helpers import G2L, cache_weights, damage, run_g2l
from PIL import Image

from g2l_plugin import cli

SMALL = ["--width", "64", "--height", "64", "--min-sharpness", "0", "--workers", "1"]


@pytest.fixture
def slides(tmp_path, write_slide):
    for number in range(3):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 384 + 64 * number)
    return tmp_path / "slides"


def test_help_alone_teaches_how_to_use_it(capsys):
    for words, expected in (
        (["--help"], ["index", "pack"]),
        (["index", "--help"], ["g2l index /data/TCGA-BRCA", "SLIDES_ROOT=", "(default: 1000)"]),
        (["pack", "--help"], ["g2l pack data/index", "PACKED_ROOT="]),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(part in text for part in expected)


def test_index_says_what_became_of_slides_and_tiles(slides, tmp_path, capsys):
    (slides / "bad slide é.svs").write_bytes(b"no slide")
    arguments = ["index", str(slides), str(tmp_path / "index"), *SMALL]
    assert cli.main([*arguments, "--max-lost", "0.5"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"used\s+│\s+3 ", out) and re.search(r"kept\s+│\s+\d+ ", out)
    assert "bad slide é.svs" in out
    assert f"Look at: {tmp_path / 'index' / 'index.html'}" in out
    assert cli.main(arguments) == 1  # above the limit: the index is there, the status says no
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("error: 1 of 4 slides cannot be used") and "--max-lost" in message


def test_shards_are_merged_when_all_are_there(slides, tmp_path, capsys):
    arguments = ["index", str(slides), str(tmp_path / "index"), *SMALL]
    assert cli.main([*arguments, "--shard", "1/2"]) == 0
    assert "g2l index … --merge" in capsys.readouterr().out
    assert cli.main([*arguments, "--merge"]) == 1
    assert "1 of 3 slides are not indexed" in capsys.readouterr().err
    assert cli.main([*arguments, "--shard", "2/2"]) == 0
    assert cli.main([*arguments, "--merge"]) == 0
    assert (tmp_path / "index" / "index.html").is_file()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "-1/2"])
def test_a_shard_that_is_none_is_refused(shard, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["index", "slides", "index", f"--shard={shard}"])
    assert stop.value.code == 2
    assert "expected I/N" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "some"])
def test_a_number_of_slides_below_one_is_refused(number, capsys):
    with pytest.raises(SystemExit):
        cli.main(["index", "slides", "index", f"--n-slides={number}"])
    assert f"--n-slides: expected 1 or more, or `all`, got '{number}'" in capsys.readouterr().err


def test_pack_ends_with_the_command_that_trains_on_it(slides, tmp_path, capsys):
    cli.main(["index", str(slides), str(tmp_path / "index"), *SMALL])
    packed = tmp_path / "packed"
    assert cli.main(["pack", str(tmp_path / "index"), str(packed), "--workers", "1"]) == 0
    assert f"PACKED_ROOT={packed} eva fit" in capsys.readouterr().out.splitlines()[-1]
    assert (packed / "train" / "index.json").is_file()


def test_an_interrupted_command_says_that_it_goes_on(monkeypatch, tmp_path, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("g2l_plugin.slides.indexing.build_index", interrupt)
    assert cli.main(["index", str(tmp_path), str(tmp_path / "index")]) == 130
    assert "continues from here" in capsys.readouterr().err


def test_the_console_script_prints_errors_in_a_line(slides, tmp_path):
    words = [G2L, "index", tmp_path / "none", tmp_path / "index"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr


@pytest.mark.slow
def test_an_error_in_a_process_of_pack_is_a_line(slides, tmp_path):
    assert run_g2l("index", slides, tmp_path / "index", *SMALL).returncode == 0
    damage(slides / "1.tiff", 0, range(4, 12))
    result = run_g2l("pack", tmp_path / "index", tmp_path / "packed", "--workers", "2")
    assert result.returncode == 1
    assert re.search(r"^error: .*tiles cannot be read.*--max-lost", result.stderr, re.MULTILINE)
    assert {path.name for path in tmp_path.iterdir()} == {"slides", "index"}


def test_models_are_listed_with_what_is_in_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache_weights(tmp_path, "paige-ai/Virchow2")
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    columns = {line.split("  ")[1].strip(): line.split() for line in lines if line[:2] == "  "}
    assert columns["Virchow2"][-6:] == ["631.2", "1280", "224", "cc-by-nc-nd-4.0", "yes", "yes"]
    assert columns["Virchow"][-5:] == ["631.2", "1280", "224", "apache-2.0", "yes"]


def test_config_lists_finds_and_copies(tmp_path, capsys):
    assert cli.main(["config"]) == 0
    out = capsys.readouterr().out
    assert "g2l_breast" in out and "benchmarks/bach" in out and "eva fit --config" in out
    assert cli.main(["config", "g2l_breast"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.is_absolute() and path.read_text().startswith("---\n# The G2L recipe for breast")
    assert cli.main(["config", "g2l_breast", "--copy", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "g2l_breast.yaml")
    assert cli.main(["config", "g2l_lnug"]) == 1
    assert "no config 'g2l_lnug'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["config", "--copy", str(tmp_path)])


def test_images_are_packed_and_the_last_line_names_their_settings(tmp_path, capsys):
    for number in range(4):
        image = Image.new("RGB", (64, 64), (number, 90, 90))
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / "images" / f"p{number // 2}_{number}.png")
    arguments = ["pack", str(tmp_path / "images"), str(tmp_path / "packed"), "--workers", "1"]
    options = ["--mpp", "0.25", "--tile-size", "32", "--patient-pattern", "p[01]", "--seed", "3"]
    assert cli.main([*arguments, *options]) == 0
    told = f"PACKED_ROOT={tmp_path / 'packed'} TILE_SIZE=32 COHORT_SEED=3 eva fit"
    assert told in capsys.readouterr().out.splitlines()[-1]
    assert cli.main([*arguments, *options]) == 1
    assert "packed exists. Remove it" in capsys.readouterr().err


def test_an_index_is_not_packed_with_settings_of_images(slides, tmp_path, capsys):
    cli.main(["index", str(slides), str(tmp_path / "index"), *SMALL])
    arguments = ["pack", str(tmp_path / "index"), str(tmp_path / "packed")]
    assert cli.main([*arguments, "--tile-size", "64", "--mpp", "0.5"]) == 1
    assert "is an index, which has its settings already: leave out --mpp, --tile-size" in (
        capsys.readouterr().err
    )


def test_embed_writes_a_file_a_slide_and_says_where(slides, tmp_path, capsys):
    (slides / "bad.svs").write_bytes(b"no slide")
    arguments = ["embed", "demo:teacher", str(slides), "--output", str(tmp_path / "features")]
    arguments += ["--tile-size", "56", "--min-sharpness", "0", "--workers", "1"]
    assert cli.main(arguments) == 1
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("error: 1 of 4 slides cannot be embedded")
    assert cli.main([*arguments, "--max-lost", "0.5"]) == 0
    found = re.search(r"3 of 4 slides, ([\d,]+) tiles \(0 lost\)", capsys.readouterr().out)
    shapes = []
    for number in range(3):
        with h5py.File(tmp_path / "features" / f"{number}.h5") as file:
            shapes.append(file["features"].shape)
    assert {width for _, width in shapes} == {192}
    assert sum(tiles for tiles, _ in shapes) == int(found[1].replace(",", "")) > 0
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--shard", "3/2"])
