"""BreakHis at all four magnifications; eva's class only accepts the 40X images."""

from __future__ import annotations

from eva.vision import datasets
from typing_extensions import override

from g2l_plugin.errors import UserError

_N_IMAGES = {"40X": 1471, "100X": 1535, "200X": 1496, "400X": 1324}
"""Number of images of eva's four classes (TA, MC, F, DC) at each magnification, from table 1 of
Spanhol et al. 2016 (https://doi.org/10.1109/TBME.2015.2496264)."""


class BreaKHis(datasets.BreaKHis):
    """eva's BreakHis dataset with its split by patient, complete at every magnification."""

    @override
    def validate(self) -> None:
        complete = datasets.BreaKHis(self._root, magnifications=self._magnifications)
        complete.configure()
        expected = sum(_N_IMAGES[magnification] for magnification in self._magnifications)
        if len(complete) != expected:
            raise UserError(
                f"{self._root} has {len(complete):,} BreakHis images at "
                f"{', '.join(self._magnifications)}. Expected {expected:,}. Unpack all of "
                "BreaKHis_v1.tar.gz there, or let eva download it (DOWNLOAD_DATA=true)."
            )
