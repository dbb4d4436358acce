"""Potentials behind the interfaces of other simulation packages."""
