"""Tissue classes of single patches of the demo: what the patch tokens of a student know.

python benchmarks/study/dense.py --work DIR

For each run of the pair `demo` that has ended: a logistic probe on the patch tokens of the
teacher, the student before and the student after, judged by the mean intersection over union on
held-out slides. Writes dense.json into the run's folder.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from g2l_plugin import DemoTiles
from g2l_plugin.demo.generate import load_cohort
from g2l_plugin.demo.tissue import MASK_DOWNSAMPLE
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.load import EncoderSource

_SIZE = 56
_MAX_PATCHES = 20_000


@torch.inference_mode()
def embed_patches(encoder: Encoder, root: Path, slides: str) -> tuple[np.ndarray, np.ndarray]:
    """Patch tokens of tiles of a split, (N, D), and the tissue class of each, 0 for none."""
    dataset = DemoTiles(str(root), slides, max_tiles=1000, labelled=False)
    dataset.prepare_data()
    dataset.setup()
    masks = {slide.path: np.asarray(Image.open(slide.mask)) for slide in load_cohort(str(root))}
    side = _SIZE // MASK_DOWNSAMPLE
    tokens, labels = [], []
    for start in range(0, len(dataset), 64):
        numbers = range(start, min(start + 64, len(dataset)))
        images = torch.stack([dataset[number] for number in numbers])[:, :, :_SIZE, :_SIZE] / 255
        grid = encoder.eval()(images, with_grid=True).grid  # (B, C, side, side)
        tokens.append(grid.permute(0, 2, 3, 1).flatten(0, 2).numpy())
        for number in numbers:
            mask = masks[dataset.tiles.paths[dataset.tiles.slide_of_tile[number]]]
            x, y = dataset.tiles.xy[number] // MASK_DOWNSAMPLE
            labels.append(mask[y : y + side, x : x + side].ravel())
    tokens, labels = np.concatenate(tokens), np.concatenate(labels)
    chosen = np.random.default_rng(0).permutation(len(labels))[:_MAX_PATCHES]
    return tokens[chosen], labels[chosen]


def probe(encoder: Encoder, root: Path) -> float:
    """Mean intersection over union of a logistic probe on an encoder's patch tokens."""
    train, test = (embed_patches(encoder, root, slides) for slides in ("train", "test"))
    scaler = StandardScaler().fit(train[0])
    classifier = LogisticRegression(C=0.1, max_iter=300).fit(scaler.transform(train[0]), train[1])
    return float(
        jaccard_score(test[1], classifier.predict(scaler.transform(test[0])), average="macro")
    )


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the study")
    work = parser.parse_args().work.resolve()
    teacher = probe(EncoderSource("demo:teacher").load(), work / "demo")
    for minutes in sorted(work.glob("runs/demo/*/*/minutes")):
        (run,) = minutes.parent.glob("*/run_0")
        found = {"teacher": teacher}
        for name, folder in (("student before", "start"), ("student after", "student")):
            found[name] = probe(EncoderSource(f"local-dir:{run / folder}").load(), work / "demo")
        (minutes.parent / "dense.json").write_text(json.dumps(found))
        print(minutes.parent, found, flush=True)


if __name__ == "__main__":
    main()
