import dataclasses

import pytest
from huggingface_hub import ModelCard

from g2l_plugin.encoders.encoder import Provenance
from g2l_plugin.publishing.card import StudentFacts, render_card

FACTS = StudentFacts(
    teacher=Provenance("hf-hub:org/teacher", "abc123", "model.safetensors", "f00d", "apache-2.0"),
    start=Provenance("hf-hub:org/start", "def456", "model.safetensors", "beef", "apache-2.0"),
    architecture="vit_giant_patch14_reg4_dinov2",
    parameters=303_657_216,
    teacher_parameters=1_134_774_272,
    embedding_dim=1024,
    input_size=(224, 224),
    mean=[0.7068, 0.5755, 0.722],
    std=[0.195, 0.2316, 0.1816],
    loss="`LogSumLoss(alpha=4)`",
    steps=1234,
    tiles_seen=39488,
    n_slides=1000,
    alignment={"val/cka": 0.98765, "val/cosine": 0.87654, "step": 1000},
    evaluation={"k": 20, "encoders": {"student after": {"knn_accuracy": 0.5, "cka": 0.25}}},
    license="apache-2.0",
)


def test_metadata_is_what_the_hub_reads():
    data = ModelCard(render_card(FACTS)).data
    assert (data.library_name, data.license, data.base_model) == ("timm", "apache-2.0", "org/start")
    assert data.pipeline_tag == "image-feature-extraction"


@pytest.mark.parametrize(
    "said",
    [
        "303.66 M",
        "26.8%",
        "abc123",
        "f00d",
        "def456",
        "1,234 steps",
        "39,488",
        "1,000 whole slides",
        "linear CKA 0.9877",
        "at step 1,000",
        "| student after | 0.5000 | 0.2500 |",
        "k = 20",
    ],
)
def test_the_text_says_what_was_counted(said):
    assert said in " ".join(render_card(FACTS).split())


def test_nothing_is_claimed_that_was_not_measured():
    facts = dataclasses.replace(
        FACTS,
        alignment={},
        evaluation=None,
        license=None,
        n_slides=None,
        start=Provenance("timm:vit_tiny", pretrained=False),
    )
    text = render_card(facts)
    data = ModelCard(text).data
    assert "Nothing yet." in text and "random weights" in text and "not settled" in text
    assert data.license is None and data.base_model is None
