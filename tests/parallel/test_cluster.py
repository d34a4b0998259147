"""Jobs on a cluster: a real scheduler and two real workers on this machine."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from cluster_jobs import change_path, die_the_first_time, double
from helpers import save_tiny_model
from PIL import Image

from g2l_plugin import cli
from g2l_plugin.embedding import on_cluster
from g2l_plugin.embedding.embed_slides import embed_slides
from g2l_plugin.errors import UserError
from g2l_plugin.parallel import cluster
from g2l_plugin.parallel.failures import OutOfTime, WorkerCrash
from g2l_plugin.parallel.jobs import run_jobs
from g2l_plugin.slides import shards
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.pack import pack_images, pack_tiles
from g2l_plugin.slides.tile_grid import TileGrid

distributed = pytest.importorskip("distributed", reason="Dask: pip install '.[cluster]'")
dask = pytest.importorskip("dask")

GRID = TileGrid(64, 64, min_sharpness=0)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with (
        dask.config.set(temporary_directory=str(tmp_path_factory.mktemp("dask"))),
        distributed.LocalCluster(
            host="127.0.0.1", n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as workers,
        distributed.Client(workers, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def scheduler(client):
    try:
        client.wait_for_workers(2, timeout=30)
    except (TimeoutError, asyncio.TimeoutError):  # Dask gives up a worker that does not start again
        client.cluster.scale(0)
        client.cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
    return client.scheduler.address


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_job_that_kills_its_worker_and_one_that_hangs_are_reported_and_all_others_run(scheduler):
    results = dict(run_jobs(double, range(20), time_limit=4, scheduler=scheduler))
    assert isinstance(results.pop(7), WorkerCrash)
    assert isinstance(results.pop(9), OutOfTime)
    assert results == {n: 2 * n for n in range(20) if n not in (7, 9)}


def test_a_job_that_lost_its_workers_is_tried_once_more_alone(client, scheduler, tmp_path):
    def allow_failures(count, dask_scheduler=None):
        before, dask_scheduler.allowed_failures = dask_scheduler.allowed_failures, count
        return before

    allowed = client.run_on_scheduler(allow_failures, 0)
    try:
        (tmp_path / "there").touch()
        jobs = [tmp_path / "absent", tmp_path / "there"]
        results = run_jobs(die_the_first_time, jobs, scheduler=scheduler)
        assert sorted(results) == [(job, "done") for job in jobs]
    finally:
        client.run_on_scheduler(allow_failures, allowed)


def test_more_jobs_than_the_scheduler_gets_at_a_time_are_each_done_once(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "_WAITING", 3)
    jobs = [1, 2, 3, 3, 4, 5, 6, 8]
    results = sorted(run_jobs(double, jobs, scheduler=scheduler))
    assert results == [(job, 2 * job) for job in jobs]


def test_an_exception_of_the_function_is_raised(scheduler):
    with pytest.raises(ValueError, match="a hundred"):
        list(run_jobs(double, [1, 100], scheduler=scheduler))


def test_a_caller_that_stops_cancels_the_rest(client, scheduler):
    results = run_jobs(time.sleep, [0.1] * 1000, scheduler=scheduler)
    assert next(results) == (0.1, None)
    results.close()
    until(lambda: not any(client.processing().values()), seconds=5)


def files_in(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.slow
def test_an_index_of_which_a_worker_is_killed_equals_that_of_one_machine(
    client, scheduler, tmp_path, write_slide, monkeypatch
):
    for number in range(4):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 384 + 64 * number)
    build_index(tmp_path / "local", GRID, tmp_path / "slides", workers=2)

    build_index(tmp_path / "index", GRID, tmp_path / "slides", workers=1, shard=(4, 4))
    # The reader of a pipe into which nobody writes hangs.
    kept = (tmp_path / "slides" / "1.tiff").rename(tmp_path / "1.tiff")
    os.mkfifo(tmp_path / "slides" / "1.tiff")
    monkeypatch.chdir(tmp_path)
    relative = ("index", GRID, "slides")
    thread = threading.Thread(target=build_index, args=relative, kwargs={"scheduler": scheduler})
    thread.start()
    tables = tmp_path / "index" / "slides"
    until(lambda: len([*tables.glob("*.parquet")]) == 3)
    until(lambda: sum(map(len, client.processing().values())) == 1)
    kept.rename(tmp_path / "slides" / "1.tiff")
    (hanging,) = [worker for worker, keys in client.processing().items() if keys]
    # Now: a worker that an earlier test killed may have come back in between.
    os.kill(client.run(os.getpid, workers=[hanging])[hanging], signal.SIGKILL)
    thread.join(30)
    assert not thread.is_alive()

    expected, found = files_in(tmp_path / "local"), files_in(tmp_path / "index")
    assert len([name for name in found if name.endswith((".parquet", ".jpg"))]) == 8
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_slides_embedded_on_a_cluster_equal_those_of_one_machine(
    scheduler, tmp_path, write_slide, monkeypatch
):
    monkeypatch.setattr(on_cluster, "_PART_SLIDES", 1)
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 128 + 64 * number)
    save_tiny_model(tmp_path / "model")
    how = {"tile_size": 32, "min_sharpness": 0, "accelerator": "cpu", "max_lost": 1.0}
    slides = tmp_path / "slides"
    (slides / "torn.tiff").write_bytes(b"II*")
    expected = embed_slides("local-dir:model", slides, "local", workers=0, **how)
    rows = embed_slides("local-dir:model", slides, "cluster", scheduler=scheduler, **how)
    assert rows == expected and [row.status for row in rows[:3]] == ["embedded"] * 3
    tables = [(tmp_path / name / "embeddings.csv").read_bytes() for name in ("local", "cluster")]
    assert tables[0] == tables[1]
    assert not list((tmp_path / "cluster").glob("embeddings-*.csv"))
    for number in range(3):
        local, there = (tmp_path / name / f"{number}.h5" for name in ("local", "cluster"))
        with h5py.File(local) as a, h5py.File(there) as b:
            assert len(a["features"]) > 3
            assert np.array_equal(a["coords"], b["coords"])
            np.testing.assert_allclose(a["features"], b["features"], atol=1e-6)


STAND_IN = """
import json, os, sys, time
root = os.environ["OUTPUT_ROOT"]
if "teacher/bach" in root:
    sys.exit("error: BACH is incomplete")
os.makedirs(root)
names = ("N_RUNS", "DATA_ROOT", "TEACHER_EMBEDDINGS_ROOT", "UNREAD")
said = {name: os.environ.get(name) for name in names} | {"folder": os.getcwd(), "at": time.time()}
json.dump(said, open(root + "/said.json", "w"))
"""


@contextlib.contextmanager
def eva_of_the_workers(client, folder, code):
    """Makes a script the `eva` that the workers find."""
    eva = folder / "bin" / "eva"
    eva.parent.mkdir()
    eva.write_text(f"#!{sys.executable}\n{code}")
    eva.chmod(0o755)
    (before,) = {*client.run(change_path, f"{eva.parent}:/usr/bin:/bin").values()}
    try:
        yield
    finally:
        client.run(change_path, before)


def test_a_benchmark_on_a_cluster_runs_eva_as_its_user_would(
    client, scheduler, tmp_path, monkeypatch, capsys
):
    for task in ("crc", "mhist", "bach"):
        (tmp_path / "data" / task / "images").mkdir(parents=True)
    save_tiny_model(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("N_RUNS", "7")
    monkeypatch.setenv("UNREAD", "of this machine alone")
    monkeypatch.setenv("DATA_ROOT", "not this")
    with eva_of_the_workers(client, tmp_path, STAND_IN):
        words = ["mine", "--tasks", "crc", "mhist", "bach", "--reference", "demo:teacher"]
        assert cli.main(["benchmark", *words, "--scheduler", scheduler]) == 1
    err = capsys.readouterr().err
    assert "failed: bach (teacher): BACH is incomplete" in err
    assert "failed: bach (mine): not run, because the reference" in err
    assert err.splitlines()[-1].startswith("error: 2 of 6 runs failed")
    said = {
        path.parent.relative_to(tmp_path / "benchmark" / "logs").as_posix(): json.loads(
            path.read_text()
        )
        for path in tmp_path.rglob("said.json")
    }
    assert said.keys() == {"teacher/crc", "teacher/mhist", "mine/crc", "mine/mhist"}
    for name, one in said.items():
        assert (one["N_RUNS"], one["UNREAD"], one["folder"]) == ("7", None, str(tmp_path))
        assert one["DATA_ROOT"] == f"{tmp_path}/data/{name.rpartition('/')[2]}"
        assert (one["TEACHER_EMBEDDINGS_ROOT"] is None) is name.startswith("teacher")
    assert said["mine/crc"]["at"] > said["teacher/mhist"]["at"]


def test_tiles_of_ones_own_are_benchmarked_on_a_cluster_without_a_folder_data(
    client, scheduler, tmp_path, monkeypatch, capsys
):
    (tmp_path / "tiles.csv").write_text("path,label\n0.png,a\n1.png,b\n")
    monkeypatch.chdir(tmp_path)
    code = "import sys; sys.exit('error: this eva does nothing')"
    with eva_of_the_workers(client, tmp_path, code):
        words = ["demo:teacher", "--manifest", "tiles.csv", "--scheduler", scheduler]
        assert cli.main(["benchmark", *words]) == 1
    assert "failed: tiles (teacher): this eva does nothing" in capsys.readouterr().err


def test_a_worker_that_does_not_see_a_folder_says_so(scheduler, tmp_path):
    with pytest.raises(UserError, match=r"The worker on \S+ does not see .*/other\. All machines"):
        list(run_jobs(double, [1], scheduler=scheduler, needs=[tmp_path, tmp_path / "other"]))


def test_a_worker_of_another_version_says_so(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "__version__", "0.0.1")
    with pytest.raises(UserError, match=r"has g2l-plugin \S+, and this machine 0\.0\.1"):
        list(run_jobs(double, [1], scheduler=scheduler))


def test_a_worker_without_the_package_of_the_function_says_so(scheduler, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def double(number):\n    return 2 * number\n")
    monkeypatch.syspath_prepend(tmp_path)
    from only_here import double

    with pytest.raises(UserError, match=r"A worker of .* \(No module named 'only_here'\)"):
        list(run_jobs(double, [1], scheduler=scheduler))


def test_an_index_for_a_wrong_scheduler_is_not_begun_and_one_line_says_why(tmp_path, capsys):
    index = tmp_path / "index"
    assert cli.main(["index", str(tmp_path), str(index), "--scheduler", "cluster"]) == 1
    assert capsys.readouterr().err.startswith("error: No Dask scheduler answers at 'cluster'")
    assert not index.exists()


@pytest.fixture
def silent_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_wrong_or_silent_address_is_an_error_within_seconds(silent_port, client, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(UserError, match="No Dask scheduler answers at 'tcp.*: it is silent"):
        list(run_jobs(double, [1], scheduler=f"tcp://127.0.0.1:{silent_port}"))
    with pytest.raises(UserError, match="'cluster:8786'"):
        list(run_jobs(double, [1], scheduler="cluster:8786"))
    with pytest.raises(UserError, match="missing port number"):
        list(run_jobs(double, [1], scheduler="cluster"))
    (worker, *_) = client.scheduler_info()["workers"]
    with pytest.raises(UserError, match="this is the address of a worker"):
        list(run_jobs(double, [1], scheduler=worker))
    assert time.monotonic() - start < 10


def test_without_dask_a_scheduler_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'g2l-plugin\[cluster\]'"):
        list(run_jobs(double, [1], scheduler="tcp://127.0.0.1:8786"))


def test_a_pack_of_a_cluster_equals_that_of_one_machine(
    scheduler, tmp_path, write_slide, monkeypatch
):
    pytest.importorskip("litdata", reason="LitData: pip install '.[packed]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "SHARD_TILES", 16)
    for number in range(2):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 384 + 64 * number)
    build_index("index", GRID, "slides", workers=1)
    pack_tiles("index", "local", n_val_tiles=4, workers=1)
    pack_tiles("index", "cluster", n_val_tiles=4, scheduler=scheduler)
    expected, found = files_in(tmp_path / "local"), files_in(tmp_path / "cluster")
    assert len([name for name in found if name.endswith(".bin")]) > 2
    assert found == expected


def test_images_packed_by_a_cluster_equal_those_of_one_machine(scheduler, tmp_path, monkeypatch):
    pytest.importorskip("litdata", reason="LitData: pip install '.[packed]'")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(6):
        (tmp_path / "images").mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    how = {"mpp": 0.5, "tile_size": 32, "patient_pattern": "^([0-9])", "n_val_tiles": 4}
    pack_images("images", "local", **how, workers=1)
    pack_images("images", "cluster", **how, scheduler=scheduler)
    expected, found = files_in(tmp_path / "local"), files_in(tmp_path / "cluster")
    assert len([name for name in found if name.endswith(".bin")]) == 2
    assert found == expected
