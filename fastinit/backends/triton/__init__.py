"""The kernels in Triton's language.

In: what the contract says. Out: bits in memory.
It may import the contract, stream and elements, never the choice.
"""
