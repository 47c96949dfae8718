"""Triton kernels: pointers, strides and sizes. They know neither torch nor this project's types; launchers do.

Sizes that change from step to step are never compile-time constants: each distinct one would be compiled anew.
"""
