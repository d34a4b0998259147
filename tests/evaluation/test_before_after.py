import io

from rich.console import Console

from g2l_plugin.evaluation.before_after import DistillationEvaluation, headline

INDEXES = [f"{index}/k={k}" for k in (20, 5) for index in ("PathoROBIndex", "RobustnessIndex")]


def result(*names):
    return {"values": dict.fromkeys(names, 0.5), "undefined": {}, "intervals": {}}


def test_a_short_table_has_one_column_per_family_at_the_largest_k():
    names = [*INDEXES, "Top10Accuracy/all", "LinearCKA", "LinearCKAUnbiased"]
    results = {
        "teacher": result(*names),
        "student": result("LogisticAUROC", "KNNBalancedAccuracy", "KNNAccuracy"),
    }
    assert list(headline(results).items()) == [
        ("KNNAccuracy", "kNN accuracy"),
        ("LogisticAUROC", "logistic AUROC"),
        ("LinearCKAUnbiased", "CKA with the teacher"),
        ("RobustnessIndex/k=20", "robustness index (k=20)"),
        ("PathoROBIndex/k=20", "PathoROB index (k=20)"),
    ]


def test_the_trainer_gets_the_table_once_there_are_results():
    evaluation = DistillationEvaluation(train=[], test=[])
    assert evaluation.on_session_end() == []
    evaluation.results = {"teacher": result("KNNAccuracy"), "student after": result()}
    evaluation._size = {"n_tiles": 1200, "n_units": 3}
    (table,) = evaluation.on_session_end()
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    text = console.file.getvalue()
    assert table.title == "On 1,200 tiles of 3 held-out slides"
    teacher, student = (line for line in text.splitlines() if "teacher" in line or "after" in line)
    assert "0.5000" in teacher and " - " in student
