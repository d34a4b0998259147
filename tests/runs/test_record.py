import pytest

from g2l_plugin.distillation.losses import LogSumLoss, MeanSquaredErrorLoss
from g2l_plugin.runs.record import describe_objective

LINEAR = "a linear projector, discarded afterwards, maps the student's embedding to the teacher's; "
ROTATION = "a fixed rotation turns the student's embedding into "


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((LogSumLoss(),), LINEAR + "the loss is LogSumLoss(alpha=4) after batch norms"),
        (
            (LogSumLoss(2), "linear", False),
            LINEAR + "the loss is LogSumLoss(alpha=2) after a batch norm of its side",
        ),
        (
            (LogSumLoss(), "linear", True, 0.0, 2),
            LINEAR + "the loss is LogSumLoss(alpha=4) after batch norms; each of 2 teachers has "
            "its own projector and loss, and their weighted mean is the loss",
        ),
        (
            (MeanSquaredErrorLoss(), "rotation", True, 0.5),
            ROTATION + "the teacher's; the loss is MeanSquaredErrorLoss(), plus 0.5 x the cosine "
            "loss of patch tokens",
        ),
        (
            (MeanSquaredErrorLoss(), "rotation", True, 0.0, 2),
            ROTATION + "the joined embeddings of 2 teachers; the loss is MeanSquaredErrorLoss()",
        ),
        (
            (MeanSquaredErrorLoss(), "learned_rotation"),
            ROTATION.replace("fixed rotation", "rotation that trains")
            + "the teacher's; the loss is MeanSquaredErrorLoss()",
        ),
    ],
)
def test_an_objective_is_said_as_it_was(arguments, expected):
    assert describe_objective(*arguments) == expected
