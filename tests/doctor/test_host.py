import dataclasses

from g2l_plugin.doctor.host import Host, find_host, judge_host

GB = 10**9
GOOD = Host(16, 128 * GB, 100 * GB, 64 * GB, 65536, forked=True)


def judge(settings, **changes):
    return judge_host(dataclasses.replace(GOOD, **changes), settings)


def test_a_machine_that_can_feed_its_device_has_nothing_to_change(settings):
    assert {finding.mark for finding in judge(settings)} == {"ok"}


def test_more_workers_than_cores_is_a_warning_with_the_number_that_fits(settings):
    cores = judge(settings, cores=4)[0]
    assert (cores.mark, cores.advice) == ("warning", "Set N_DATA_WORKERS=3")
    two = judge_host(GOOD, dataclasses.replace(settings, devices=2))[0]
    assert (two.mark, two.advice) == ("warning", "Set N_DATA_WORKERS=7")


def test_memory_in_use_is_a_warning_and_too_little_is_a_problem(settings):
    # 9 processes of 0.9 GB and 8,192 tiles of 0.2 MB: 9.7 GB
    assert judge(settings, available=9 * GB)[1].mark == "warning"
    little = judge(settings, memory=8 * GB, available=7 * GB)[1]
    assert little.mark == "problem" and "needed are about 9.7 GB" in little.fact
    assert "N_DATA_WORKERS" in little.advice


def test_the_shared_memory_of_a_container_is_too_small_for_workers_that_are_not_forked(settings):
    shared = judge(settings, shared=64 * 2**20, forked=False)[-1]
    assert shared.mark == "problem" and "/dev/shm has 0.07 GB free" in shared.fact
    assert "--shm-size=3g" in shared.advice
    assert {f.mark for f in judge(settings, shared=64 * 2**20, forked=True)} == {"ok"}
    alone = dataclasses.replace(settings, workers=0)
    assert {f.mark for f in judge(alone, shared=64 * 2**20, forked=False)} == {"ok"}


def test_too_few_open_files_are_a_problem(settings):
    files = judge(settings, open_files=256)[-1]
    assert files.mark == "problem" and "ulimit -n 4096" in files.advice
    assert {f.mark for f in judge(settings, open_files=-1)} == {"ok"}  # unlimited


def test_what_the_system_does_not_say_is_left_out(settings):
    (cores,) = judge(settings, memory=None, available=None, shared=None, open_files=None)
    assert "cores" in cores.fact


def test_asking_this_machine_gives_an_answer():
    host = find_host()
    assert host.cores >= 1 and (host.memory is None or (host.available or 0) <= host.memory)
