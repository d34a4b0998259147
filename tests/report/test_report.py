import json
import re
from urllib.parse import unquote
from xml.etree import ElementTree

import pandas as pd
import pytest

from g2l_plugin import cli
from g2l_plugin.errors import UserError
from g2l_plugin.report.report import write_report


@pytest.fixture
def logs(write_session, predictions, tmp_path):
    """Three models on two tasks; one task has only one centre."""
    speeds = {
        "teacher": ("NVIDIA H200", 300.0),
        "start": ("NVIDIA H200", 1100.0),
        "after <b>": ("CPU", 9.0),
    }
    for number, (model, cka, accuracy) in enumerate(
        [("teacher", 1.0, 0.9), ("start", 0.6, 0.7), ("after <b>", 0.95, 0.88)]
    ):
        device, speed = speeds[model]
        facts = {
            "sha256": f"{number}" * 64,
            "parameters": 300_000_000 - number,
            "flops": 164_800_000_000,
            "embedding_dim": 1024,
            "input_size": 224,
            "batch_size": 8,
            "device": device,
            "tiles_per_second": speed,
            "peak_memory_bytes": None,
        }
        common = {"model": model, "facts": facts, "classes": ["benign", "malignant"]}
        values = {"KNNAccuracy": accuracy, "LogisticAUROC": accuracy + 0.05}
        values["LinearCKAUnbiased"] = cka
        write_session(
            f"{number}/bach",
            split="val",
            head={"MulticlassAccuracy": [accuracy, accuracy + 0.02]},
            values=values,
            undefined={"RobustnessIndex/k=5": "all tiles are of one centre, x"},
            predictions=predictions(accuracy, seed=number),
            **common,
        )
        robustness = {f"RobustnessIndex/k={k}": accuracy + k / 10 for k in (3, 5)}
        intervals = {name: {"low": 0.5, "high": 2.0} for name in robustness}
        write_session(
            f"{number}/tiger",
            task="tiger",
            values=robustness,
            intervals=intervals,
            predictions=predictions(accuracy, seed=number),
            **common,
        )
    return tmp_path / "logs"


def test_a_report_is_a_page_markdown_tables_and_plots(logs, tmp_path, capsys):
    output = tmp_path / "report"
    assert cli.main(["report", str(logs), "--output", str(output), "--reference", "start"]) == 0
    assert {path.name for path in output.iterdir()} == {
        "report.html",
        "report.md",
        "report.csv",
        "differences.csv",
        "plots",
    }
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"Look at: {output / 'report.html'}"
    assert "0.890" in out and "± 0.014" in out and "undefined" in out and "Midnight-12k" in out

    values = pd.read_csv(output / "report.csv")
    own = values.query("model == 'start' and task == 'BACH' and metric == 'MulticlassAccuracy'")
    assert own[["mean", "n_runs"]].values.tolist() == [[0.71, 2]]
    assert list(values.columns[:4]) == ["model", "task", "split", "metric"]
    assert values.query("published")["source"].notna().all()
    assert (values.query("undefined.notna()")["metric"] == "RobustnessIndex/k=5").all()

    differences = pd.read_csv(output / "differences.csv")
    after = differences.query("model == 'after <b>' and metric == 'KNNAccuracy'").iloc[0]
    assert after["low"] > 0 and after["excludes_0"] and after["n_units"] == 40

    markdown = (output / "report.md").read_text()
    results = markdown.partition("## eva's head")[2]
    bach = next(line for line in results.splitlines() if line.startswith("| teacher |"))
    assert "**0.910** ± 0.014" in bach
    assert re.search(r"\| after &lt;b> .*<ins>0\.890</ins> ± 0\.014", markdown)
    assert "| *H-optimus-0* † |" in markdown
    assert (
        "undefined 1" in markdown and "- 1 Undefined: all tiles are of one centre, x." in markdown
    )
    headings = re.findall(r"^## (.+)$", markdown, re.MULTILINE)
    assert headings[:2] == ["Overview", "eva's head, balanced accuracy"]
    assert headings[-1] == "Sources"
    for name in re.findall(r"\]\((plots/\S+)\)", markdown):
        ElementTree.parse(output / name)
    assert {path.stem for path in (output / "plots").iterdir()} == {
        "cka",
        "embeddings_bach",
        "embeddings_tiger",
        "quality_parameters",
        "quality_speed",
        "robustness_k",
    }


def test_the_page_marks_the_best_and_loads_nothing(logs, tmp_path):
    write_report([str(logs)], tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    shown = re.sub(r"</?a\b[^>]*>", "", page)
    assert '<td class="best"><span class="value">0.910</span>' in shown
    assert '<td class="second"><span class="value">0.890</span>' in shown
    assert '<td class="undefined"><span class="value">undefined</span><sup>1</sup>' in shown
    assert re.search(r'<tr class="published">\s*<th scope="row">Virchow2<sup>†</sup>', page)
    assert "<li><b>†</b>Published, not measured here: eva&#39;s leaderboard" in page
    assert "The interval excludes 0: start is worse." in page
    assert "after &lt;b&gt;" in page and "after <b>" not in page
    assert "speeds on different devices are not comparable" in page
    assert "0" * 64 in page and str(logs / "0" / "bach") in page
    # What a browser loads by itself: sources and style sheets. # and data: are within the page.
    loading = re.sub(r'<a href="[^#"][^"]*"', "", page)
    loaded = re.findall(r"(?:src|href)=[\"']?([^\"'\s>]+)|url\(([^)]+)\)|@import", loading)
    targets = {target for pair in loaded for target in pair if target}
    assert targets and all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert "http-equiv" in page and "default-src 'none'" in page
    assert "<script" not in page
    # Identifiers are unique across plots.
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert not set(re.findall(r'href="#([^"]+)"', page)) - set(identifiers)
    assert len(page) < 600_000


def test_every_number_of_a_session_leads_to_its_file_wherever_the_report_is(logs, tmp_path):
    (tmp_path / "a b").mkdir()
    output = tmp_path / "a b" / "report"
    write_report([str(logs)], output)
    page = (output / "report.html").read_text()
    rows = re.findall(r'<a href="([^"#]+)">([^<]+)</a>', page)
    files = [(output / unquote(address), text) for address, text in rows]
    assert all(file.is_file() for file, _ in files) and not any("%20" in own for own, _ in rows)
    assert ((logs / "1" / "bach" / "results.json").resolve(), "0.710") in [
        (file.resolve(), text) for file, text in files
    ]
    for file, text in files:
        if file.name == "val.json" and text != "undefined":
            values = json.loads(file.read_text())["values"].values()
            assert text in [f"{value:.3f}" for value in values]
    assert '<a href="report.csv" download>' in page
    tables = page[page.index('id="results"') : page.index('id="size"')]
    numbers = re.findall(r"<tr>.*?</tr>", tables, re.DOTALL)
    unlinked = re.findall(r'class="value">([\d.]+)</span>', "".join(numbers))
    assert not unlinked  # published ones are in rows of another class


def test_each_number_of_the_overview_leads_to_its_file_or_to_the_table_it_is_computed_from(
    write_session, tmp_path
):
    for model, accuracy, speed in (("a", 0.9, 100.0), ("b", 0.8, 300.0)):
        facts = {"parameters": 7_000_000, "device": "CPU", "tiles_per_second": speed}
        values = {"KNNAccuracy": accuracy, "RobustnessIndex/k=5": 1 + accuracy}
        write_session(f"{model}/1", model=model, values=values, facts=facts)
        if model == "b":  # a second session: its speed is a median, its values are means
            facts = facts | {"tiles_per_second": 500.0}
            write_session(f"{model}/2", model=model, values=values, facts=facts)
    output = tmp_path / "report"
    write_report([str(tmp_path / "logs")], output, published=False)
    page = (output / "report.html").read_text()
    overview = page[page.index('id="overview"') : page.index('id="results"')]
    links = re.findall(r'<td><a href="([^"]+)"(?: title="([^"]+)")?>([^<]+)</a>', overview)
    ranks = "Mean of the ranks on 1 task, by the values of this table"
    metrics = "../logs/{}/1/run_0/metrics/{}.json"
    assert links == [
        ("#knn", ranks, "1.00"),
        (metrics.format("a", "test"), "", "1.900"),
        (metrics.format("a", "facts"), "", "7.0"),
        (metrics.format("a", "facts"), "", "100"),
        ("#knn", ranks, "2.00"),
        ("#robustness", "Mean of the values of this table on 1 task", "1.800"),
        (metrics.format("b", "facts"), "", "7.0"),
        (
            "#sessions",
            "Median of the sessions of this model on this device, which are listed here",
            "400",
        ),
    ]
    pooled = '<a href="#sessions" title="Pooled from 2 sessions, which are listed here">0.800</a>'
    assert page.count(pooled) == 1
    assert '<a href="../logs/b/2/"><code>' in page[page.index('id="sessions"') :]


def test_speeds_of_different_devices_are_in_different_plots(logs, tmp_path):
    report = write_report([str(logs)], tmp_path / "report")
    (speed,) = [plot for plot in report.plots if plot.name == "quality_speed"]
    assert speed.title == "Quality against speed, NVIDIA H200"
    assert "teacher" in speed.svg and "start" in speed.svg and "after" not in speed.svg


def test_no_published_leaves_published_values_out(logs, tmp_path, capsys):
    output = tmp_path / "report"
    assert cli.main(["report", str(logs), "--output", str(output), "--no-published"]) == 0
    assert "Virchow2" not in capsys.readouterr().out
    assert "Virchow2" not in (output / "report.html").read_text()
    assert not pd.read_csv(output / "report.csv")["published"].any()


def test_only_a_report_is_replaced(logs, tmp_path, write_session):
    output = tmp_path / "report"
    write_report([str(logs / "0")], output)
    write_report([str(logs / "1")], output)
    assert "| start |" in (output / "report.md").read_text()
    assert "| teacher |" not in (output / "report.md").read_text()
    (output / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"report holds other files than a report"):
        write_report([str(logs)], output)
    assert (output / "mine.txt").read_text() == "keep me"
    with pytest.raises(UserError, match=r"logs holds other files than a report"):
        write_report([str(logs)], logs)
    (tmp_path / "empty").mkdir()
    write_report([str(logs / "1")], tmp_path / "empty")
    assert (tmp_path / "empty" / "report.html").is_file()


def test_a_report_that_fails_leaves_no_files(logs, tmp_path, capsys):
    (logs / "2" / "tiger" / "run_0" / "metrics" / "test.parquet").write_bytes(b"no parquet")
    output = tmp_path / "report"
    assert cli.main(["report", str(logs), "--output", str(output)]) == 1
    *_, message = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: .*test\.parquet is damaged \(.*\)\. .*", message)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_results_of_eva_alone_make_a_report(write_session, config, tmp_path):
    runs = {"MulticlassAccuracy": [0.8, 0.82], "AverageLoss": [0.5, 0.4]}
    write_session("plain", split="val", head=runs, config=config(), embedding_metrics=False)
    output = tmp_path / "report"
    report = write_report([str(tmp_path / "logs")], output)
    assert report.plots == [] and report.differences == []
    assert "| pathology/owkin_phikon | 0.810 ± 0.014 |" in (output / "report.md").read_text()
    assert (output / "differences.csv").read_text().startswith("task,split,metric,model")


def test_a_task_without_published_values_makes_a_report(write_session, tmp_path):
    values = {f"RobustnessIndex/k={k}": 1 + k / 10 for k in (3, 5)}
    intervals = {name: {"low": value - 0.1, "high": value + 0.1} for name, value in values.items()}
    write_session("a", task="ours", values=values, intervals=intervals)
    write_session("b", task="ours", model="b", values=values)  # one patient: no interval
    report = write_report([str(tmp_path / "logs")], tmp_path / "report")
    assert [plot.name for plot in report.plots] == ["robustness_k"]
    assert not report.values["published"].any()


def test_a_few_shot_curve_has_no_dashed_line_and_counts_labelled_tiles(write_session, tmp_path):
    values = {f"FewShotBalancedAccuracy/k={k}": 0.5 + k / 10 for k in (1, 2)}
    intervals = {name: {"low": value - 0.1, "high": value + 0.1} for name, value in values.items()}
    write_session("a", task="ours", values=values, intervals=intervals)
    report = write_report([str(tmp_path / "logs")], tmp_path / "report")
    (plot,) = report.plots
    assert plot.name == "few_shot_k" and "dashed" not in plot.caption
    assert plot.caption.endswith("Bands are 95 % intervals.")
    assert "labelled tiles per class, k" in plot.svg


def test_the_same_results_make_the_same_plots(logs, tmp_path):
    for name in ("one", "two"):
        write_report([str(logs)], tmp_path / name)
    for plot in (tmp_path / "one" / "plots").iterdir():
        assert plot.read_bytes() == (tmp_path / "two" / "plots" / plot.name).read_bytes()


def test_plots_of_thousands_of_tiles_stay_small(write_session, predictions, tmp_path):
    many = predictions(0.9, n_patients=200, n_tiles=50)
    write_session("a", values={"KNNAccuracy": 0.9}, predictions=many)
    report = write_report([str(tmp_path / "logs")], tmp_path / "report")
    (plot,) = report.plots
    assert plot.svg.count("data:image/png") == 2 and len(plot.svg) < 120_000  # class and centre


def test_labels_are_text_in_spreadsheets_and_markdown(write_session, tmp_path):
    formula, link = '=HYPERLINK("http://x")', "[x](javascript:alert(1))"
    write_session("1", model=formula, values={"KNNAccuracy": 0.9})
    write_session("2", model=link, values={"KNNAccuracy": -0.5})
    output = tmp_path / "report"
    write_report([str(tmp_path / "logs")], output)
    table = pd.read_csv(output / "report.csv")
    assert set(table["model"]) == {f"'{formula}", link}
    assert sorted(table["mean"]) == [-0.5, 0.9]  # a number stays one
    text = (output / "report.md").read_text()
    assert "\\[x\\](javascript" in text and link not in text


def test_patients_that_a_student_was_distilled_on_are_counted_and_left_out(write_session, tmp_path):
    shared = {"n_patients": 80, "n_shared": 12, "values": {"KNNAccuracy": 0.8124}}
    undefined = {"LogisticAUROC": "one class is left"}
    found = {"evaluated": shared | {"undefined": undefined}}
    found["all_splits"] = {"n_patients": 99, "n_shared": 20, "values": {"RobustnessIndex/k=5": 1.1}}
    values = {"KNNAccuracy": 0.9, "LogisticAUROC": 0.8, "RobustnessIndex/k=5": 1.2}
    head = {"MulticlassAccuracy": [0.7, 0.8]}
    write_session("a", model="student", values=values, head=head, training_patients=found)
    none = {"evaluated": {"n_patients": 80, "n_shared": 0}}
    write_session("b", model="other", values=values, head=head, training_patients=none)
    write_session("c", model="teacher", values=values, head=head)
    write_report([str(tmp_path / "logs")], tmp_path / "report")
    markdown = (tmp_path / "report" / "report.md").read_text()
    page = (tmp_path / "report" / "report.html").read_text().replace("&#39;", "'")
    were = "12 of 80 patients were in the student's training cohort"
    for note in (
        f"{were}; without them 0.812.",
        f"{were}; without them undefined: one class is left.",
        f"{were}; no value was computed without them.",
        "20 of 99 patients were in the student's training cohort; without them 1.100.",
    ):
        assert markdown.count(f"- 1 {note}") == page.count(f"<li><b>1</b>{note}</li>") == 1
    assert "**0.900** 1 |" in markdown
    for model, trained_on in (
        ("student", "12 of 80"),
        ("other", "0 of 80"),
        ("teacher", "not known"),
    ):
        assert f"| {model} | BACH | {trained_on} | `" in markdown
        assert f'<td class="left">{trained_on}</td>' in page
    table = pd.read_csv(tmp_path / "report" / "report.csv").query("metric == 'KNNAccuracy'")
    table = table[~table["published"]].set_index("model")[["n_trained_on", "mean_without"]]
    assert table.loc["student"].tolist() == [12, 0.8124]
    assert table.loc["other"].tolist() == [0, 0.9]
    assert table.loc["teacher"].isna().all()


def test_umap_has_plots_of_its_own_of_the_tiles_and_models_that_have_it(
    write_session, predictions, tmp_path
):
    with_umap = predictions(0.9).assign(**{"umap/1": 1.0, "umap/2": range(400)})
    with_umap.loc[::2, ["umap/1", "umap/2"]] = float("nan")  # tiles that were left out
    collapsed = predictions(0.5).assign(**{"umap/1": float("nan"), "umap/2": float("nan")})
    tables = {"one": with_umap, "none": predictions(0.8), "collapsed": collapsed}
    for model, table in tables.items():
        write_session(model, model=model, values={"KNNAccuracy": 0.9}, predictions=table)
    report = write_report([str(tmp_path / "logs")], tmp_path / "report")
    pca, umap = report.plots
    assert (pca.name, umap.name) == ("embeddings_bach", "embeddings_bach_umap")
    assert (pca.title, umap.title) == (
        "Embeddings of BACH (test)",
        "Embeddings of BACH (test), UMAP",
    )
    assert pca.caption == "" and umap.caption.startswith("UMAP of the same embeddings")
    shown = [re.findall(r">(one|none|collapsed)<", plot.svg) for plot in (pca, umap)]
    assert list(map(set, shown)) == [{"one", "none", "collapsed"}, {"one", "collapsed"}]
    for name in ("report.html", "report.md"):
        assert umap.caption in (tmp_path / "report" / name).read_text()
    assert (tmp_path / "report" / "plots" / "embeddings_bach_umap.svg").is_file()
