"""Small encoders that tests make, without network, and eva's command line as a user calls it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import fork_server
import tifffile
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

ROOT = Path(__file__).parents[1]
G2L = Path(sys.executable).with_name("g2l")

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
"""Arguments that make timm's vit_tiny_patch16_224 tiny indeed."""

WIDER = TINY | {"embed_dim": 48, "depth": 2}


def save_tiny_model(folder: Path, seed: int = 0, mean=(0.7, 0.6, 0.65), **model_args) -> Path:
    """Publishes a tiny random ViT as timm does; returns the folder."""
    torch.manual_seed(seed)
    model_args = TINY | model_args
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **model_args)
    save_for_hf(
        model,
        str(folder),
        safe_serialization=True,
        model_config={"pretrained_cfg": {"license": "apache-2.0"}},
        data_config={
            "input_size": (3, model_args["img_size"], model_args["img_size"]),
            "mean": mean,
            "std": (0.2, 0.25, 0.15),
        },
    )
    return folder


_OWN_CODE = """
    import torch
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput

    class OwnConfig(PretrainedConfig):
        model_type = "own"
        hidden_size = 8

    class OwnModel(PreTrainedModel):
        config_class = OwnConfig

        def __init__(self, config):
            super().__init__(config)
            self.project = torch.nn.Linear(3, 8)
            self.post_init()

        def forward(self, pixel_values):
            tokens = pixel_values.flatten(2).transpose(1, 2)[:, :5]
            return BaseModelOutput(last_hidden_state=self.project(tokens))
"""


def save_own_code(folder: Path) -> Path:
    """Publishes a model that only its own code can build; returns the folder."""
    folder.mkdir()
    (folder / "own_model.py").write_text(textwrap.dedent(_OWN_CODE))
    config = {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own_model.OwnConfig", "AutoModel": "own_model.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"project.weight": torch.ones(8, 3), "project.bias": torch.zeros(8)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def run_eva(command, config, cwd, interrupt=None, **environment):
    """Runs eva's command line on a config; returns the finished process.

    With a function as `interrupt` the process is sent SIGTERM once that returns something.
    """
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TQDM_REFRESH_RATE": "1",
        "N_DATA_WORKERS": "1",
        "ACCELERATOR": "cpu",
        "FORCE_PUBLISH": "true",  # a few steps need not better a student
        **{name: str(value) for name, value in environment.items()},
    }
    process = _start("eva", command, "--config", config, cwd=cwd, env=environment)
    if interrupt is not None:
        threading.Thread(target=_terminate_when, args=(process, interrupt), daemon=True).start()
    return _wait(process)


def _terminate_when(process, condition):
    while process.poll() is None:
        if condition():
            process.send_signal(signal.SIGTERM)
            return
        time.sleep(0.05)


def run_script(script, *arguments, **environment):
    """Runs a Python script of the tests; returns the finished process."""
    return run_command("python", script, *arguments, **environment)


def run_g2l(*arguments, **environment):
    """Runs our command line; returns the finished process."""
    return run_command("g2l", *arguments, **environment)


def run_command(name, *arguments, **environment):
    """Runs `eva`, `g2l` or `python`, offline; returns the finished process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return _wait(_start(name, *arguments, env=environment))


def _start(name, *arguments, **options):
    """Starts a command, forked if it can be."""
    return subprocess.Popen(
        [fork_server.command(name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _wait(process):
    try:
        output = process.communicate(timeout=600)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def printed_command(stdout: str) -> tuple[dict[str, str], str]:
    """Variables and config of the benchmark command, the last line that a fit prints."""
    words = shlex.split(stdout.splitlines()[-1].removeprefix("Benchmark: "))
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z0-9_]+=", word))
    assert words[len(variables) : -1] == ["eva", "predict_fit", "--config"], words
    return variables, words[-1]


def damage(path: Path, level: int, tiles) -> None:
    """Overwrites compressed tiles of a TIFF slide, so that OpenSlide opens it and fails there.

    The file's time stays: it went bad, nobody changed it.
    """
    stat = path.stat()
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        spans = [(page.dataoffsets[n], page.databytecounts[n]) for n in tiles]
    with path.open("r+b") as file:
        for offset, count in spans:
            file.seek(offset)
            file.write(b"\xff" * count)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cache_weights(cache: Path, repo_id: str) -> None:
    """Has the Hub's cache know a repository with weights, whose main is the commit abc."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "model.safetensors").touch()
