"""BreakHis at each of its magnifications, by eva's class, which checks the 40X images only."""

from __future__ import annotations

from eva.vision import datasets
from typing_extensions import override

from g2l_plugin.errors import UserError

_N_IMAGES = {"40X": 1471, "100X": 1535, "200X": 1496, "400X": 1324}
"""Images of eva's four classes (TA, MC, F, DC) at each magnification; Spanhol et al. 2016, table 1
(https://doi.org/10.1109/TBME.2015.2496264)."""


class BreaKHis(datasets.BreaKHis):
    """eva's dataset and split by patients, whole at every magnification."""

    @override
    def validate(self) -> None:
        whole = datasets.BreaKHis(self._root, magnifications=self._magnifications)
        whole.configure()
        expected = sum(_N_IMAGES[magnification] for magnification in self._magnifications)
        if len(whole) != expected:
            raise UserError(
                f"{self._root} holds {len(whole):,} images of BreakHis at "
                f"{', '.join(self._magnifications)}, and not {expected:,}. Unpack all of "
                "BreaKHis_v1.tar.gz there, or let eva do it: DOWNLOAD_DATA=true."
            )
