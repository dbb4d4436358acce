"""The bricks of a network: each a small module, none of which knows ASE or files."""
