"""Checks that make a potential trusted; each returns figures, and can draw or print them."""
