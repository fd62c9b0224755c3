"""Our networks' names in timm, as soon as timm is there, without loading it for them.

A leaf that loads nothing: timm and torchvision take seconds and 200 MB in each process.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REGISTRY = "mobilenext.models.registry"
"""The module that registers the networks when it is imported."""


def register_with_timm() -> None:
    """Register our networks, now if timm is loaded, else when it will be."""
    if "timm" in sys.modules:
        importlib.import_module(REGISTRY)
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm(MetaPathFinder):
    """Finds timm where the others do, and has our networks registered once it is loaded."""

    asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm" or self.asking:
            return None
        self.asking = True
        try:
            spec = importlib.util.find_spec("timm")
        finally:
            self.asking = False
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            load = loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                importlib.import_module(REGISTRY)

            loader.exec_module = load_and_register
        return spec
