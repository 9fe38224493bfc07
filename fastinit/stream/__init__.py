"""The specification: keys, laws and the reference, plain torch that says every bit.

In: a seed, a name, a law. Out: streams, kernel parameters, values.
It may import base, elements.
"""
