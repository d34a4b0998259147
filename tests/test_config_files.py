import pytest
import yaml
from omegaconf import OmegaConf

from g2l_plugin import config_files
from g2l_plugin.config_files import copy_config, find_config, list_configs, load_config
from g2l_plugin.errors import UserError


def test_every_config_has_a_name_and_says_what_it_is():
    configs = list_configs()
    assert {"quickstart", "g2l", "g2l_breast", "g2l_prostate", "benchmarks/bach"} <= set(configs)
    assert not any(name.startswith("recipes") for name in configs)
    assert all(summary for summary in configs.values())


def test_a_config_is_found_by_name_and_by_path(tmp_path):
    assert find_config("g2l_breast") == find_config("g2l_breast.yaml")
    assert find_config("benchmarks/demo").name == "demo.yaml"
    own = tmp_path / "own.yaml"
    own.write_text("trainer: {}\n")
    assert find_config(str(own)) == own
    with pytest.raises(UserError, match="no config 'g2l_brest'"):
        find_config("g2l_brest")


def test_cancers_differ_by_name_slides_and_benchmark_alone(monkeypatch):
    def flatten(value, name=""):
        if isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            return {
                k: v for key, inner in parts for k, v in flatten(inner, f"{name}.{key}").items()
            }
        return {name: value}

    monkeypatch.setenv("CANCER", "lung")
    breast, prostate, lung = map(flatten, map(load_config, ("g2l_breast", "g2l_prostate", "g2l")))
    assert breast.keys() == prostate.keys() == lung.keys()
    differing = {name: (breast[name], lung[name]) for name in breast if breast[name] != lung[name]}
    assert set(differing.values()) == {
        ("breast", "lung"),
        ("logs/g2l_breast", "logs/g2l_lung"),
        ("data/index/g2l_breast", "data/index/g2l_lung"),
        ("data/tcga_brca", "data/lung"),
        ("benchmarks/bach", "benchmarks/pathorob_tcga"),
    }
    assert "benchmarks/gleason_arvaniti" in prostate.values()


@pytest.mark.parametrize(
    ("cancer", "benchmark"),
    [("colorectal", "crc"), ("esophagus", "pathorob_tolkach_esca"), ("kidney", "plism")],
)
def test_a_name_is_all_that_another_cancer_needs(cancer, benchmark, monkeypatch):
    monkeypatch.setenv("CANCER", cancer)
    config = load_config("g2l")
    train = config["data"]["init_args"]["datasets"]["train"]["init_args"]
    assert train["root"] == f"data/{cancer}"
    publish = config["trainer"]["init_args"]["callbacks"][-1]["init_args"]
    assert publish["cancer"] == cancer
    assert find_config(publish["benchmark_config"]).name == f"{benchmark}.yaml"


def test_recipes_differ_where_they_say(monkeypatch):
    monkeypatch.setenv("CANCER", "lung")
    paper, robust = (load_config(name)["model"]["init_args"] for name in ("g2l", "g2l_robust"))
    assert paper["loss"]["class_path"] == "g2l_plugin.LogSumLoss"
    assert robust["loss"]["class_path"] == "g2l_plugin.MeanSquaredErrorLoss"
    assert (paper["projector"], robust["projector"]) == ("linear", "learned_rotation")
    assert paper["student"]["source"] == robust["student"]["source"] == "hf-hub:histai/hibou-L"
    small = load_config("g2l_small")
    assert small["model"]["init_args"]["student"]["source"] == "scratch:vits14"
    assert small["model"]["init_args"]["student"]["pretrained"] == "False"
    assert small["model"]["init_args"]["projector"] == "learned_rotation"
    assert small["trainer"]["init_args"]["max_steps"] == "50000"
    assert small["data"]["init_args"]["dataloaders"]["train"]["batch_size"] == "256"
    assert paper["further_teachers"] is None
    (second,) = load_config("g2l_breast_two_teachers")["model"]["init_args"]["further_teachers"]
    assert second["source"] == "hf-hub:paige-ai/Virchow2"


@pytest.mark.parametrize("name", ["g2l_robust", "g2l_breast_two_teachers"])
def test_a_copy_of_another_recipe_is_whole_too(tmp_path, monkeypatch, name):
    monkeypatch.setenv("CANCER", "lung")
    copy = copy_config(name, tmp_path)
    assert load_config(copy) == load_config(name)
    assert "by_recipe" not in copy.read_text()


def test_variables_of_the_environment_reach_the_recipe(monkeypatch):
    monkeypatch.setenv("SLIDES_ROOT", "/slides")
    monkeypatch.setenv("OUTPUT_ROOT", "/logs")
    config = load_config("g2l_breast")
    assert config["data"]["init_args"]["datasets"]["train"]["init_args"]["root"] == "/slides"
    assert config["trainer"]["init_args"]["logger"][0]["init_args"]["save_dir"] == "/logs"


def test_a_recipe_without_its_cancer_says_how_to_name_it(monkeypatch):
    monkeypatch.delenv("CANCER", raising=False)
    with pytest.raises(UserError, match="CANCER is not set"):
        load_config("g2l")


def test_a_copy_is_a_whole_config_of_the_same_values(tmp_path, monkeypatch):
    copy = copy_config("g2l_breast", tmp_path / "new")
    assert copy == tmp_path / "new" / "g2l_breast.yaml"
    assert load_config(copy) == load_config("g2l_breast")
    text = copy.read_text()
    assert "${oc.env:SLIDES_ROOT, data/tcga_brca}" in text and "g2l.recipe" not in text
    assert "# Not in the paper" in text
    with pytest.raises(UserError, match=r"g2l_breast.yaml exists"):
        copy_config("g2l_breast", tmp_path / "new")
    assert copy_config("quickstart", tmp_path).read_text() == find_config("quickstart").read_text()


def test_an_installed_package_has_its_configs_beside_it(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "own.yaml").write_text(yaml.safe_dump({"trainer": 1}))
    monkeypatch.setattr(config_files, "_PACKAGE", tmp_path)
    assert list_configs() == {"own": ""}


def test_a_change_on_the_command_line_reaches_an_included_recipe(tmp_path):
    config_files.register_resolvers()
    change = OmegaConf.from_dotlist(["trainer.init_args.max_steps=7"])
    merged = OmegaConf.merge(OmegaConf.load(find_config("g2l_breast")), change)
    trainer = OmegaConf.to_container(merged, resolve=True)["trainer"]
    assert trainer["init_args"]["max_steps"] == 7
    assert trainer["class_path"] == "g2l_plugin.KDTrainer"
