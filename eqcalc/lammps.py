"""LAMMPS: build and find the plugin."""

from __future__ import annotations


def plugin_folder() -> str:
    """Folder with the built plugin, for LAMMPS's `lammps.plugins` entry point."""
    return "/tmp"
