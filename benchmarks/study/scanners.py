"""One tissue, stained and scanned by four centres: what of a student's embedding stays the same.

python benchmarks/study/scanners.py --work DIR

For each run of the pair `demo` that has ended, the protocol of PLISM (arXiv 2501.16239) on three
generated sections that no run has seen, each in the stain and scanner of each of the demo's
centres: how often a tile's nearest ten hold the same place of another centre, and their cosine. Of
the teacher, the student before and the student after. Writes scanners.json into the run's folder.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from g2l_plugin import MatchedRobustness
from g2l_plugin.demo.generate import CENTRES, scan
from g2l_plugin.demo.tissue import MASK_DOWNSAMPLE as _MASK
from g2l_plugin.demo.tissue import paint_tissue
from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.metrics.embeddings import Embeddings

_VIEW = 56
_SECTIONS, _SIZE = 3, 1536
_SEED = 2026


def ended_runs(work: Path) -> Iterator[tuple[Path, Path]]:
    """The folders of the demo's rows that have ended, each with that of its run."""
    for minutes in sorted(work.glob("runs/demo/*/*/minutes")):
        (evaluation,) = minutes.parent.glob("*/run_0/evaluation.json")
        yield minutes.parent, evaluation.parent


def scan_sections() -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Tiles (N, 3, 56, 56) in [0, 1] of all sections and centres, and their groups."""
    tiles, groups = [], {"scanner": [], "stain": [], "location": [], "patient": []}
    for section in range(_SECTIONS):
        h, e, labels = paint_tissue(_SIZE, np.random.default_rng([_SEED, section]))
        places = [
            (y, x)
            for y in range(0, _SIZE - _VIEW, _VIEW)
            for x in range(0, _SIZE - _VIEW, _VIEW)
            if labels[y // _MASK : (y + _VIEW) // _MASK, x // _MASK : (x + _VIEW) // _MASK].all()
        ]
        for number, centre in enumerate(CENTRES):
            image = scan(h, e, centre, np.random.default_rng([_SEED, section, number]))
            for y, x in places:
                tiles.append(torch.from_numpy(image[y : y + _VIEW, x : x + _VIEW]))
                values = (centre, centre, f"{section} {y} {x}", str(section))
                for name, value in zip(groups, values, strict=True):
                    groups[name].append(value)
    images = torch.stack(tiles).permute(0, 3, 1, 2) / 255
    return images, {name: np.array(values) for name, values in groups.items()}


@torch.inference_mode()
def judge(
    encoder: Encoder, images: torch.Tensor, groups: dict[str, np.ndarray]
) -> dict[str, float]:
    """Cosine and retrieval of the same place in the other centres."""
    values = torch.cat([encoder.eval()(batch) for batch in images.split(64)]).numpy()
    number = np.arange(len(values))
    embeddings = Embeddings(values, np.zeros_like(number), number.astype(str), groups)
    found = MatchedRobustness(k=[10]).compute(embeddings, embeddings).values
    return {name: value for name, value in found.items() if name.endswith("/both")}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the study")
    work = parser.parse_args().work.resolve()
    tiles = scan_sections()
    teacher = judge(EncoderSource("demo:teacher").load(), *tiles)
    for folder, run in ended_runs(work):
        found = {"teacher": teacher}
        for name, of in (("student before", "start"), ("student after", "student")):
            found[name] = judge(EncoderSource(f"local-dir:{run / of}").load(), *tiles)
        (folder / "scanners.json").write_text(json.dumps(found))
        print(folder, len(tiles[0]), found, flush=True)


if __name__ == "__main__":
    main()
