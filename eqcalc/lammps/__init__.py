"""LAMMPS: build and find the plugin, write input scripts, run them.

LAMMPS imports this package on every rank to ask for `plugin_folder`: nothing here imports torch or
anything slow at module level.
"""

from eqcalc.lammps.box import lammps_cell
from eqcalc.lammps.plugin import Diagnosis, build, doctor, lammps, plugin_folder
from eqcalc.lammps.script import write_input
from eqcalc.lammps.simulation import read_thermo, run_lmp

__all__ = [
    "Diagnosis",
    "build",
    "doctor",
    "lammps",
    "lammps_cell",
    "plugin_folder",
    "read_thermo",
    "run_lmp",
    "write_input",
]
