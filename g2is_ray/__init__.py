"""g2is-ray's library: arithmetic and files, no Ray."""

__version__ = "0.1.0"
