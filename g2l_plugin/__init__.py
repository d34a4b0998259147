"""G2L for eva: distil a giga-scale pathology encoder into a large-scale student of one cancer.

The public names are in `__init__.pyi`, grouped as a pathologist works. Each is imported on first
use: importing this package loads neither torch nor eva.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
