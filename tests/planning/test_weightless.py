import pytest
import torch

from g2l_plugin.encoders.known import find_known
from g2l_plugin.errors import UserError
from g2l_plugin.planning.plan import describe_networks
from g2l_plugin.planning.weightless import build_weightless, read_module

GIGAPATH = "hf-hub:prov-gigapath/prov-gigapath"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """The Hub cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("TEACHER", "STUDENT", "PATCH_WEIGHT", "MICRO_BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)


def built(config="g2l_breast"):
    module = read_module(config)
    build_weightless(module)
    return module


def test_variables_choose_the_networks_and_nothing_is_downloaded(monkeypatch):
    monkeypatch.setenv("TEACHER", GIGAPATH)
    monkeypatch.setenv("STUDENT", "scratch:vits14")
    monkeypatch.setenv("MICRO_BATCH_SIZE", "8")
    module = built()
    (teacher,), student, trained = describe_networks(module)
    assert module.micro_batch_size == 8
    assert (teacher.source, teacher.parameters) == (GIGAPATH, find_known(GIGAPATH).parameters)
    assert (student.parameters, student.features) == (21_629_952, 384)
    assert trained == 21_629_952 + (384 + 1) * 1536
    assert all(p.device == torch.device("meta") for p in module.parameters())
    assert module.teacher.model.norm.weight.dtype == torch.bfloat16


def test_two_teachers_are_built(monkeypatch):
    monkeypatch.setenv("STUDENT", "scratch:vits14")
    module = built("g2l_breast_two_teachers")
    assert [encoder.embedding_dim for encoder in module.teachers.encoders] == [1536, 2560]


def test_a_network_of_evas_registry_is_the_known_one(monkeypatch):
    monkeypatch.setenv("TEACHER", "eva:pathology/lunit_vits16")
    monkeypatch.setenv("STUDENT", "scratch:vits14")
    assert built().teacher.patch_size == (16, 16)


def test_patch_tokens_get_their_projector(monkeypatch):
    monkeypatch.setenv("TEACHER", "scratch:vitb14")
    monkeypatch.setenv("STUDENT", "scratch:vits14")
    monkeypatch.setenv("PATCH_WEIGHT", "0.5")
    module = built()
    assert module.patch_weight == 0.5
    assert sum(p.numel() for p in module.patch_objective.parameters()) >= 384 * 768


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ("eva:universal/vit_small_patch16_224_dino", "cannot be built without its weights"),
        ("hf-hub:org/unknown", "Model org/unknown is not in the local cache"),
        ("scratch:none", "Unknown network scratch:none"),
        ("nonsense", "Unknown encoder source 'nonsense'"),
    ],
)
def test_a_network_that_cannot_be_built_is_named_in_one_line(monkeypatch, teacher, expected):
    monkeypatch.setenv("STUDENT", "scratch:vits14")
    monkeypatch.setenv("TEACHER", teacher)
    with pytest.raises(UserError) as error:
        built()
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SHARD_TEACHERS", "maybe", "shard_teachers is 'maybe': expected bool\\."),
        ("FREEZE_BATCH_NORM", "often", "freeze_batch_norm is 'often': expected bool or null\\."),
        ("PATCH_WEIGHT", "", "patch_weight is '': expected float\\."),
        ("LR_VALUE", "nan", "lr is 'nan': expected float or torch.Tensor\\."),
    ],
)
def test_a_wrong_value_is_named_with_its_field(monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"^g2l_breast cannot be planned: {expected}"):
        read_module("g2l_breast")


def test_a_config_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"benchmarks/bach cannot be planned: .*g2l_breast"):
        read_module("benchmarks/bach")
