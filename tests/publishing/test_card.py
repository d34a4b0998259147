import dataclasses
import math
import re

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from g2l_plugin.cli import build_parser
from g2l_plugin.encoders.encoder import Provenance
from g2l_plugin.publishing.card import CardFacts, render_card
from g2l_plugin.publishing.export.export import TOOLS
from g2l_plugin.publishing.licenses import StudentLicense
from g2l_plugin.runs.model_names import find_source
from g2l_plugin.runs.record import EncoderRecord, RunRecord

TEACHER = Provenance("hf-hub:org/teacher", "abc123", "model.safetensors", "f00d", "apache-2.0")
START = Provenance("hf-hub:org/start", "def456", "model.safetensors", "beef", "mit")
RECORD = RunRecord(
    teacher=EncoderRecord(TEACHER, 1_134_774_272, 608_300_000_000, 1536, (224, 224)),
    student=EncoderRecord(START, 303_657_216, 164_800_000_000, 1024, (224, 224)),
    network={
        "architecture": "vit_giant_patch14_reg4_dinov2",
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "mean": [0.7068, 0.5755, 0.722],
            "std": [0.195, 0.2316, 0.1816],
        },
    },
    objective="the loss is LogSumLoss(alpha=4)",
    finished=True,
    step=1234,
    tiles_seen=39488,
    seconds=5400,
    hardware="2 x NVIDIA H200",
    cohort={"tiles": 7_500_000, "slides": 1000, "centres": {"A1": 600, "B6": 400}},
    start={"val/cka": 0.81234, "val/shared_neighbours": 0.4, "val/effective_rank": 68.72},
    alignment={
        "val/cka": 0.98765,
        "val/cka_low": 0.97,
        "val/cka_high": 0.99,
        "val/shared_neighbours": 0.6,
        "val/cosine": 0.87654,
        "val/effective_rank": 70.1,
        "tiles": 2048,
        "patients": 20,
        "step": 1000,
    },
    change={"val/cka": [0.17531, 0.1, 0.2], "val/shared_neighbours": [0.2, None, None]},
    ending="early stop: the loss exceeded the mean of its last 100 steps 11 times in a row",
)
CONFIG = {
    "trainer": {"class_path": "KDTrainer", "init_args": {"max_steps": 1234, "logger": {"x": 1}}},
    "model": {
        "class_path": "g2l_plugin.DistillationModule",
        "init_args": {
            "teacher": {"source": "secret/path"},
            "teacher_cache": "secret/path/to/cache",
            "teacher_weights": [2, 1],
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0001}},
        },
    },
    "data": {
        "init_args": {"datasets": {"train": {"init_args": {"root": "/home/me", "width": 256}}}}
    },
}
FACTS = CardFacts(
    RECORD,
    StudentLicense("apache-2.0"),
    "breast",
    CONFIG,
    {
        "task": "tissue classes",
        "n_tiles": 1234,
        "n_units": 8,
        "columns": {
            "KNNAccuracy": "kNN accuracy",
            "LinearCKA": "CKA with the teacher",
            "RobustnessIndex/k=20": "robustness index (k=20)",
        },
        "encoders": {
            "teacher": {
                "values": {"KNNAccuracy": 0.75, "LinearCKA": 1.0},
                "undefined": {"RobustnessIndex/k=20": "All are of one centre, A1."},
                "intervals": {},
            },
            "student after": {
                "values": {"KNNAccuracy": 0.5, "LinearCKA": 0.25, "RobustnessIndex/k=20": 1.25},
                "undefined": {},
                "intervals": {"KNNAccuracy": {"low": 0.4, "high": 0.6}},
            },
        },
    },
)


def test_metadata_is_what_the_hub_reads():
    data = ModelCard(render_card(FACTS)).data
    assert (data.library_name, data.license, data.base_model) == ("timm", "apache-2.0", "org/start")
    assert data.pipeline_tag == "image-feature-extraction"
    assert "breast" in data.tags
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results == {
        "unbiased linear CKA with the teacher": 0.98765,
        "10 nearest tiles shared with the teacher": 0.6,
        "cosine with the teacher, projected": 0.87654,
        "kNN accuracy": 0.5,
        "CKA with the teacher": 0.25,
        "robustness index (k=20)": 1.25,
    }


def test_every_table_is_a_table_to_a_reader_of_markdown():
    parser = MarkdownIt("commonmark").enable("table")
    html = parser.render(ModelCard(render_card(FACTS)).text)
    assert "|" not in re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", html, flags=re.DOTALL)
    rows = [len(re.findall("<tr>", table)) for table in html.split("<table>")[1:]]
    # Origin, settings, alignment, evaluation of two encoders, published values.
    assert len(rows) == 5 and rows[3] == 1 + 2
    headings = re.findall("<h2>(.+?)</h2>", html)
    assert headings[:3] == ["Use", "In other tools", "Origin"] and "Intended use" in headings


@pytest.mark.parametrize("has_onnx", [False, True])
def test_every_export_command_is_one_that_there_is(has_onnx):
    card = render_card(dataclasses.replace(FACTS, has_onnx=has_onnx))
    commands = re.findall(r"g2l export [^`\n]+", card)
    assert len(commands) == 2 - has_onnx
    section = card.partition("## In other tools")[2].partition("## ")[0]
    for tool in TOOLS:
        assert f"`{tool}`" in section
        for command in commands:
            words = command.replace("TOOL", tool).split()[1:]
            options = build_parser().parse_args(words)
            assert options.student == "hf-hub:OWNER/NAME" and options.tool in TOOLS
            # What the student's name on the Hub will be is a name that the command takes.
            assert find_source(options.student.replace("OWNER/NAME", "org/x")) == "hf-hub:org/x"


def test_a_network_of_any_kind_is_called_what_it_is():
    network = RECORD.network | {"architecture": "tf_efficientnet_lite0"}
    convolutional = dataclasses.replace(RECORD, network=network)
    card = render_card(dataclasses.replace(FACTS, record=convolutional))
    assert "An image encoder of 303.66 M" in card and "vision transformer" not in card


def test_centres_that_are_unknown_are_not_counted():
    cohort = {"tiles": 9, "images": 9, "centres": {"unknown": 9}}
    record = dataclasses.replace(RECORD, cohort=cohort)
    card = render_card(dataclasses.replace(FACTS, record=record))
    assert "drawn from 9 tiles of 9 images. " in card


@pytest.mark.parametrize(
    "said",
    [
        "for breast cancer",
        "303.66 M",
        "26.8%",
        "3.69 times as many tiles per FLOP",
        "hf-hub:org/teacher@abc123: model.safetensors sha256 f00d",
        "| start's licence | mit |",
        "1,234 steps",
        "39,488",
        "7,500,000 tiles of 1,000 whole slides from 2 centres (A1: 600, B6: 400)",
        "1.50 hours on 2 x NVIDIA H200",
        "| model.teacher_weights | [2, 1] |",
        "| model.optimizer | AdamW |",
        "| model.optimizer.lr | 0.0001 |",
        "| data.datasets.train.width | 256 |",
        "on 2,048 tiles of 20 patients that were not trained on, before training and at step 1,000",
        "| unbiased linear CKA with the embeddings of the teacher | 0.8123 | 0.9877 | "
        "0.9700 to 0.9900 |",
        "| 10 nearest tiles shared with those of the teacher | 0.4000 | 0.6000 | |",
        "| cosine of the projected embeddings with those of the teacher | | 0.8765 | |",
        "| effective rank of the embeddings | 68.7 | 70.1 | |",
        "ended at step 1,234 by early stop: the loss exceeded the mean of its last 100 steps 11",
        "tissue classes: 1,234 labelled tiles of 8 held-out slides",
        "| encoder | kNN accuracy | CKA with the teacher | robustness index (k=20) |",
        "| teacher | 0.7500 | 1.0000 | undefined |",
        "| student after | 0.5000 (0.4000 to 0.6000) | 0.2500 | 1.2500 |",
        "- All are of one centre, A1.",
        "| TILS | kNN accuracy | 0.9362 | 0.9344 | 0.9291 | 0.9214 | arXiv 2510.11176 |",
    ],
)
def test_the_text_says_what_was_counted(said):
    assert said in " ".join(render_card(FACTS).split())


def test_a_small_network_has_flops_too():
    student = dataclasses.replace(RECORD.student, flops=34_500_000)
    record = dataclasses.replace(RECORD, student=student)
    assert "with 0.0345 GFLOP" in " ".join(
        render_card(dataclasses.replace(FACTS, record=record)).split()
    )


def test_paths_of_the_machine_are_no_hyperparameters():
    text = render_card(FACTS)
    assert "/home/me" not in text and "secret/path" not in text


def test_restrictions_stand_at_the_top():
    license = StudentLicense("other", ("The teacher allows no derivatives.",))
    text = render_card(dataclasses.replace(FACTS, license=license))
    top = text.partition("## Use")[0]
    assert "> **Before you use or share it:** The teacher allows no derivatives." in top
    assert "Before you use" not in render_card(FACTS)


def test_nothing_is_claimed_that_was_not_measured():
    scratch = Provenance("scratch:vits14", pretrained=False)
    record = dataclasses.replace(
        RECORD,
        student=dataclasses.replace(RECORD.student, provenance=scratch),
        alignment={},
        cohort={},
        step=0,
    )
    text = render_card(CardFacts(record, StudentLicense("other")))
    data = ModelCard(text).data
    assert "Robustness across hospitals and scanners was not measured." in text
    assert "was not measured" not in render_card(FACTS)
    assert "Nothing yet." in text and "random weights" in text and "Not yet trained." in text
    assert "hours on" not in text and "Published values" not in text
    assert data.base_model is None and data.eval_results is None


def test_every_teacher_and_every_width_is_named():
    other = dataclasses.replace(
        RECORD.teacher, provenance=Provenance("hf-hub:org/other", license="cc-by-4.0")
    )
    record = dataclasses.replace(
        RECORD,
        further_teachers=(other,),
        widths=(256, 512),
        alignment=RECORD.alignment | {"val/cka/teacher_2": 0.71, "val/cosine/teacher_2": 0.62},
    )
    card = render_card(dataclasses.replace(FACTS, record=record))
    text = " ".join(card.split())
    assert ModelCard(card).data.to_dict()["teacher"] == ["hf-hub:org/teacher", "hf-hub:org/other"]
    assert "| teacher 2 | hf-hub:org/other" in text and "| its licence | cc-by-4.0 |" in text
    assert "The first 256, 512 features were also distilled separately" in text
    assert "| unbiased linear CKA with the embeddings of teacher 2 | | 0.7100 | |" in text
    assert "| cosine of the projected embeddings with those of teacher 2 | | 0.6200 | |" in text


def test_a_student_that_is_worse_than_its_start_is_called_so():
    record = dataclasses.replace(
        RECORD,
        start=RECORD.start | {"val/cka": 0.99},
        change={"val/cka": [-0.00235, -0.004, -0.001], "val/shared_neighbours": [0, -0.1, 0.1]},
    )
    card = render_card(dataclasses.replace(FACTS, record=record))
    assert "further from its teacher than the weights it started from:** CKA" in card
    assert "further from its teacher" not in render_card(FACTS)
    change = {"val/cka": [0.1, 0.05, 0.2], "val/shared_neighbours": [-0.1, -0.2, -0.05]}
    card = render_card(
        dataclasses.replace(FACTS, record=dataclasses.replace(RECORD, change=change))
    )
    assert "started from in one of these:** shared neighbours" in card


def test_a_figure_that_is_no_number_is_not_in_the_metadata():
    alignment = RECORD.alignment | {"val/cka": math.nan}
    card = render_card(
        dataclasses.replace(FACTS, record=dataclasses.replace(RECORD, alignment=alignment))
    )
    assert ".nan" not in card and " nan " not in card and "undefined" in card
    assert "cka" not in {result.metric_type for result in ModelCard(card).data.eval_results}
