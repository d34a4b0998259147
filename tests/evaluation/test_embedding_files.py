import numpy as np
import pandas as pd
import pytest
import torch

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.embedding_files import read_embeddings, splits_of
from g2l_plugin.metrics.embeddings import concatenate


@pytest.fixture
def save(tmp_path):
    """Write embeddings as eva does: a list of tensors per file, and a manifest."""

    def save(tensors, splits=None, **columns):
        names = [f"slide/{number}" for number in range(len(tensors))]
        for name, tensor in zip(names, tensors, strict=True):
            path = tmp_path / f"{name}.pt"
            path.parent.mkdir(exist_ok=True)
            torch.save(tensor if isinstance(tensor, list) else [tensor], path)
        table = pd.DataFrame(
            {
                "origin": [f"{name}.png" for name in names],
                "embeddings": [f"{name}.pt" for name in names],
                "target": range(len(names)),
                "split": splits or ["val"] * len(names),
                **columns,
            }
        )
        table.to_csv(tmp_path / "manifest.csv", index=False)
        return tmp_path

    return save


def test_a_split_is_read_with_its_groups_under_our_names(save):
    folder = save(
        [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])],
        splits=["train", "val", "val"],
        patient_id=[7, 8, 9],
        centre=["a", "b", "c"],
        stage=[None, None, None],
    )
    read = read_embeddings(folder, "val")
    np.testing.assert_array_equal(read.values, [[3, 4], [5, 6]])
    assert read.values.dtype == np.float32 and read.split == "val"
    assert read.labels.tolist() == [1, 2]
    assert read.names.tolist() == ["slide/1.png", "slide/2.png"]
    assert read.groups["patient"].tolist() == read.units.tolist() == ["8", "9"]
    assert read.groups["centre"].tolist() == ["b", "c"]
    assert "stage" not in read.groups
    assert splits_of(folder) == ["train", "val"]
    both = concatenate([read_embeddings(folder, split) for split in splits_of(folder)])
    assert both.labels.tolist() == [0, 1, 2] and both.groups["centre"].tolist() == ["a", "b", "c"]


def test_a_slide_is_the_mean_of_its_tiles(save):
    folder = save([[torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])]], wsi_id=["s"])
    read = read_embeddings(folder, "val")
    np.testing.assert_array_equal(read.values, [[2, 0]])
    assert read.units.tolist() == ["s"]


def test_groups_are_text_as_it_was_written(save):
    folder = save([torch.ones(2)] * 3, patient_id=["007", "7", "NA"])
    assert read_embeddings(folder, "val").groups["patient"].tolist() == ["007", "7", "NA"]


def test_a_group_that_some_tiles_lack_is_ignored(save):
    folder = save([torch.ones(2), torch.ones(2)], centre=["a", None])
    read = read_embeddings(folder, "val")
    assert read.groups == {} and read.units.tolist() == read.names.tolist()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([torch.ones(2), torch.ones(3)], "embeddings of several widths, so of several models"),
        ([torch.ones(2), torch.tensor([1.0, float("nan")])], "1 of 2 val embeddings .* not finite"),
    ],
)
def test_embeddings_of_several_widths_or_not_finite_are_an_error(save, tensors, message):
    with pytest.raises(UserError, match=message):
        read_embeddings(save(tensors), "val")


def test_missing_or_damaged_files_are_an_error(save, tmp_path):
    with pytest.raises(UserError, match="There are no embeddings in"):
        read_embeddings(tmp_path, "val")
    folder = save([torch.ones(2)])
    with pytest.raises(UserError, match="has no rows of the split 'test'"):
        read_embeddings(folder, "test")
    (folder / "slide" / "0.pt").write_bytes(b"no tensor")
    with pytest.raises(UserError, match=r"0\.pt cannot be read"):
        read_embeddings(folder, "val")
    (folder / "manifest.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no column origin, embeddings, target, split"):
        read_embeddings(folder, "val")
