"""Labelled frames from the dynamics of other methods and of networks."""
