"""Which slides the classifiers of PathoROB's average performance drop are trained on."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Design:
    """Training sets in which class and centre correlate more and more.

    Attributes:
        tiles: PathoROB's list of the tiles, with the subsets ID and OOD.
        centres: Centres of the training tiles.
        classes: Numbers of the classes, in PathoROB's order.
        slides: Number of training slides, int (training sets, centres, classes). In the first set
            class and centre are independent; the total is the same in all.
        most_slides: Largest number of training slides from one centre and class. The next slide
            gives validation tiles, those after it the in-domain test tiles.
        tiles_per_slide: Number of tiles of each slide and class.
        shared_slides: Whether a slide has tiles of several classes. Then whole slides are drawn
            for testing, so that none is both in training and in testing.
    """

    tiles: str
    centres: tuple[str, ...]
    classes: tuple[int, ...]
    slides: np.ndarray
    most_slides: int
    tiles_per_slide: int
    shared_slides: bool = False


def _tcga_slides(step: int) -> list[list[int]]:
    same, opposite, other = (
        (2, 2, 2),
        (3, 1, 2),
        (4, 2, 1),
        (5, 1, 1),
        (6, 0, 1),
        (7, 1, 0),
        (8, 0, 0),
    )[step]
    return [
        [same if row == column else opposite if row + column == 3 else other for column in range(4)]
        for row in range(4)
    ]


DESIGNS = {
    "camelyon": Design(
        tiles="camelyon",
        centres=("RUMC", "UMCU"),
        classes=(0, 1),
        slides=np.array([[[7 - n, 7 + n], [7 + n, 7 - n]] for n in range(8)]),
        most_slides=14,
        tiles_per_slide=300,
    ),
    "tcga": Design(
        tiles="tcga_4x4",
        centres=("Asterand", "Christiana Healthcare", "Roswell Park", "University of Pittsburgh"),
        classes=(0, 1, 2, 3),
        slides=np.array([_tcga_slides(step) for step in range(7)]),
        most_slides=8,
        tiles_per_slide=30,
    ),
    "tolkach_esca": Design(
        tiles="tolkach_esca",
        centres=("VALSET2_WNS", "VALSET4_CHA_FULL"),
        # TUMOR, MUSC_PROP and SH_OES against SH_MAG, REGR_TU and ADVENT.
        classes=(5, 1, 4, 3, 2, 0),
        slides=np.array([[[3 - n] * 3 + [3 + n] * 3, [3 + n] * 3 + [3 - n] * 3] for n in range(4)]),
        most_slides=6,
        tiles_per_slide=100,
        shared_slides=True,
    ),
}
"""PathoROB's training sets by dataset, from its published code."""

_MOST_TEST_SLIDES = 5


def sets_of_test_slides(slides: list[list[str]], n_test: int) -> list[tuple[str, ...]]:
    """Lists the sets of slides that can be set aside for testing.

    Args:
        slides: Slides of one centre with tiles of each class.
        n_test: Number of test slides of each class.

    Returns:
        Every set of at most five slides in which each class has that number.
    """
    names = sorted(set(itertools.chain(*slides)))
    has_class = np.array([[name in own for own in slides] for name in names])
    return [
        tuple(names[place] for place in places)
        for size in range(1, _MOST_TEST_SLIDES + 1)
        for places in itertools.combinations(range(len(names)), size)
        if (has_class[list(places)].sum(0) == n_test).all()
    ]
