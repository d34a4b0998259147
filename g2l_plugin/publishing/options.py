"""How a student is uploaded, as a config or a command line says it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class UploadOptions:
    """Where a student goes on the Hub; see `upload_student`.

    Attributes:
        repo_id: `org/name`; None uploads nothing.
        private: Whether a new repository is private.
        revision: Branch to commit to; None takes main.
        tag: Tag to give to the commit.
        create_pr: Whether to open a pull request instead of committing.
        replace: Whether another model that is there may be replaced.
        license: Licence identifier; None takes what follows from teacher and start, where that
            restricts nothing.
    """

    repo_id: str | None = None
    private: bool = False
    revision: str | None = None
    tag: str | None = None
    create_pr: bool = False
    replace: bool = False
    license: str | None = None
