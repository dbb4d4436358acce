"""Generated kernels: what makes an equivariant network fast."""
