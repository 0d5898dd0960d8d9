"""Which adapters there are and which can run here: by name, without importing a runtime's own package.

An adapter is a file of this folder with `load` and PACKAGE; see `edgellm.runtimes.session`. Names come from bundles, so a
module that is no adapter is none.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from edgellm.bundle import Bundle


def find(name: str) -> ModuleType | None:
    """The adapter of this name; None where this edgellm has none."""
    module = f"edgellm.runtimes.{name}"
    if not name.isidentifier():
        return None
    try:
        adapter = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None
    return adapter if hasattr(adapter, "load") and hasattr(adapter, "PACKAGE") else None


def version(adapter: ModuleType) -> str | None:
    """Version of the adapter's package; None where that is not installed, "" where another distribution provides it."""
    package: str = adapter.PACKAGE
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # onnxruntime comes as onnxruntime-openvino too, and under other names
        return ""


def installed(bundle: Bundle) -> dict[str, str]:
    """The runtimes that have a graph in the bundle and can run here, with their packages' versions.

    One whose package would not run on this processor says so by its `unfit`.
    """
    adapters = {name: adapter for name in bundle.graphs if (adapter := find(name)) is not None and not _unfit(adapter)}
    versions = {name: version(adapter) for name, adapter in adapters.items()}
    return {name: found for name, found in versions.items() if found is not None}


def _unfit(adapter: ModuleType) -> str | None:
    reason: str | None = adapter.unfit() if hasattr(adapter, "unfit") else None
    return reason
