import pytest
from helpers import save_tiny_model

from g2l_plugin.benchmark.models import load_models
from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.errors import UserError


def test_a_model_brings_its_own_width_size_and_normalisation(tmp_path):
    save_tiny_model(tmp_path / "tiny")
    tiny, teacher = load_models([str(tmp_path / "tiny"), "demo:teacher"])
    assert tiny.label == "tiny" and tiny.variables == {
        "MODEL_NAME": "g2l/student",
        "G2L_STUDENT": f"local-dir:{tmp_path / 'tiny'}",
        "IN_FEATURES": "32",
        "RESIZE_DIM": "32",
        "NORMALIZE_MEAN": "[0.7, 0.6, 0.65]",
        "NORMALIZE_STD": "[0.2, 0.25, 0.15]",
    }
    assert teacher.label == "teacher" and teacher.variables["RESIZE_DIM"] == "56"


def test_the_hash_is_that_of_the_backbone_that_eva_builds(tmp_path, monkeypatch):
    from eva.vision.models import ModelFromRegistry

    (model,) = load_models([str(save_tiny_model(tmp_path / "tiny"))])
    monkeypatch.setenv("G2L_STUDENT", model.variables["G2L_STUDENT"])
    assert model.sha256 == hash_tensors(ModelFromRegistry("g2l/student").model)


def test_the_student_of_a_run_is_named_after_the_run(tmp_path):
    session = tmp_path / "lung" / "20261123"
    save_tiny_model(session / "run_0" / "student")
    (model,) = load_models([str(session)])
    assert model.label == "lung_20261123"
    (named,) = load_models([f"mine={session}"])
    assert named.label == "mine" and named.sha256 == model.sha256


def test_two_models_of_one_label_are_refused_before_any_is_loaded(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "same").mkdir(parents=True)
        (tmp_path / folder / "same" / "config.json").touch()
    with pytest.raises(UserError, match="both called same.*LABEL=MODEL"):
        load_models([str(tmp_path / "a" / "same"), str(tmp_path / "b" / "same")])


def test_random_weights_and_labels_that_are_no_folder_are_refused():
    with pytest.raises(UserError, match="random weights"):
        load_models(["scratch:vits14"])
    with pytest.raises(UserError, match=r"The label '\.\./x' cannot be a folder's name"):
        load_models(["../x=demo:teacher"])


def test_maps_have_the_channels_and_the_hash_of_what_eva_builds(tmp_path, monkeypatch):
    from eva.vision.models import ModelFromRegistry

    from g2l_plugin.evaluation.segmentation import hash_maps

    tiny = str(save_tiny_model(tmp_path / "tiny", depth=3))
    assert load_models([tiny])[0].maps is None
    found = {}
    for layers in ("1", "[0, 2]"):
        monkeypatch.setenv("OUT_INDICES", layers)
        (model,) = load_models([tiny], maps=True)
        found[layers] = model.maps
        assert model.maps.variables["OUT_INDICES"] == layers
    assert [maps.variables["IN_FEATURES"] for maps in found.values()] == ["32", "64"]
    monkeypatch.setenv("G2L_STUDENT", model.variables["G2L_STUDENT"])
    built = ModelFromRegistry("g2l/student", {"out_indices": 1})
    assert found["1"].sha256 == hash_maps(built) != found["[0, 2]"].sha256
    monkeypatch.setenv("OUT_INDICES", "[7]")
    with pytest.raises(UserError, match=r"tiny gives no maps of its layers \[7\] \(OUT_INDICES\)"):
        load_models([tiny], maps=True)
