"""The ops on GPUs, as Triton kernels: a file an op, the kernels above and what launches them below.

What launches a kernel takes tensors whose arguments the op has checked, and writes into tensors that the op has made: on the device and the
current stream of its first argument, without waiting for the GPU and without memory of its own, so a CUDA graph can hold it.
Nothing here is imported before a kernel is asked for: Triton is optional.
"""
