"""One tensor, one law: the operator, and the functions that end in it.

In: a tensor, a law, a seed. Out: the tensor, written.
It may import base, elements, stream, backends.
"""
