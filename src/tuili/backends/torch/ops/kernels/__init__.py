"""Triton kernels: pointers, strides and sizes. They know neither torch nor this project's types; launchers do.

Sizes that change from step to step are never compile-time constants: each distinct one would be compiled anew. Neither
are they specialized (to 1, to multiples of 16), nor is the alignment of arrays that are slices of a step's buffer: a
server would stand still for seconds whenever another case came up.
"""
