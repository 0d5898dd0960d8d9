"""The version, in one place: packaging, bundles and reports read it from here."""

from __future__ import annotations

__version__ = "0.1.0"
