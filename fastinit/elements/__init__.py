"""Which elements of which tensor: strided sets, shards; the one gate to a tensor's memory.

In: tensors. Out: plain dense memory, and the elements of the full tensor that it holds.
It may import base.
"""
