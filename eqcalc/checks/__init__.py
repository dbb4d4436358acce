"""Checks that make a potential trusted; each returns figures, and can draw or print them.

symmetry     rotations, reflections, translations, permutations, images, cells, supercells
gradients    finite differences of the energy against forces and stress
smoothness   jumps where distances cross the cutoff; holes: on compression, in hot dynamics
nve          energy conservation in ASE and LAMMPS
parity       ASE against LAMMPS, every property, any number of ranks
properties   crystals and molecules, beside references
suite, page  all of them, as one HTML report
"""
