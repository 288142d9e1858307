"""The version, a leaf, so that anything may name it; the same as in ``pyproject.toml``."""

__all__ = ["__version__"]

__version__ = "0.2.0"
