"""Small copies of the segmentation downloads, with the layout that eva's datasets expect.

Each class has a colour of its own, so that a decoder learns them in a few steps.
"""

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

COLOURS = np.array(
    [
        (240, 240, 240),
        (200, 40, 40),
        (40, 40, 200),
        (40, 160, 40),
        (120, 40, 120),
        (220, 200, 40),
    ],
    np.uint8,
)
_TEST, _VAL = ("OL", "LL", "E2", "EW", "GM", "S3"), ("BH", "C8", "A8", "A1", "E9")


def _blocks(rng, side, n_classes, block):
    """A mask of square blocks (side, side)."""
    small = rng.integers(0, n_classes, (-(-side // block),) * 2)
    return np.kron(small, np.ones((block, block), int))[:side, :side].astype(np.uint8)


def write_consep(root: Path) -> Path:
    """27 and 14 images of one patch each, of the download's eight classes."""
    rng = np.random.default_rng(0)
    for split, n in (("Train", 27), ("Test", 14)):
        for folder in ("Images", "Labels"):
            (root / split / folder).mkdir(parents=True)
        for number in range(1, n + 1):
            mask = _blocks(rng, 250, 8, 125)
            name = f"{split.lower()}_{number}"
            merged = np.array([0, 1, 2, 3, 3, 4, 4, 4])[mask]
            Image.fromarray(COLOURS[merged]).save(root / split / "Images" / f"{name}.png")
            labels = {"type_map": mask.astype(float), "inst_map": mask.astype(float)}
            scipy.io.savemat(root / split / "Labels" / f"{name}.mat", labels)
    return root


def write_monusac(root: Path, side: int = 64) -> Path:
    """209 and 85 images, each with one nucleus outlined in an XML file as Aperio writes it."""
    rng = np.random.default_rng(0)
    kinds = ("Epithelial", "Lymphocyte", "Neutrophil", "Macrophage", "Ambiguous")
    for split, n in (
        ("MoNuSAC_images_and_annotations", 209),
        ("MoNuSAC Testing Data and Annotations", 85),
    ):
        for number in range(n):
            name = f"TCGA-5P-{number:04d}-01Z-00-DX1"
            folder = root / split / name
            folder.mkdir(parents=True)
            kind, left = number % len(kinds), int(rng.integers(4, side // 2))
            image = np.full((side, side, 3), COLOURS[0])
            image[8 : side - 8, left : left + side // 3] = COLOURS[kind + 1]
            Image.fromarray(image).save(folder / f"{name}_1.tif")
            corners = [(x, y) for x in (left, left + side // 3) for y in (8, side - 8)]
            order = [corners[index] for index in (0, 1, 3, 2)]
            vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in order)
            (folder / f"{name}_1.xml").write_text(
                f'<Annotations><Annotation Id="1"><Attributes><Attribute Name="{kinds[kind]}" '
                'Id="0" Value=""/></Attributes><Regions><RegionAttributeHeaders/>'
                f'<Region Id="1"><Attributes/><Vertices>{vertices}</Vertices></Region>'
                "</Regions></Annotation></Annotations>"
            )
    return root


def bcss_names() -> list[str]:
    """Names of 76 images to train, 30 of val and 45 of test, by eva's choice of institutes."""
    institutes = ["AR"] * 76 + [_VAL[n % 5] for n in range(30)] + [_TEST[n % 6] for n in range(45)]
    return [
        f"TCGA-{institute}-{number:04d}-DX1_xmin1_ymin1_MPP-0.2500"
        for number, institute in enumerate(institutes)
    ]


def write_bcss(root: Path) -> Path:
    """151 images of one patch each (448 px of 0.25 mpp are 224 px of 0.5), of 22 classes."""
    rng = np.random.default_rng(0)
    for folder in ("rgbs_colorNormalized", "masks"):
        (root / folder).mkdir(parents=True)
    grouped = np.full(22, 5)
    grouped[[0, 1, 2, 3, 4, 10, 11, 19, 20]] = [0, 1, 2, 3, 4, 3, 3, 1, 1]
    for name in bcss_names():
        mask = _blocks(rng, 448, 22, 224)
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        Image.fromarray(COLOURS[grouped[mask]]).save(root / "rgbs_colorNormalized" / f"{name}.png")
    return root
