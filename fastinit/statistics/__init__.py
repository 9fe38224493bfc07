"""Moments: of a tensor, and of a product that is never made.

In: tensors. Out: Moments.
It may import base, elements, stream, backends, fills, init.
"""
