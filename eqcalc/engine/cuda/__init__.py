"""The fused engine on a GPU: kernels from the same plan, a C++ host, NVRTC."""
