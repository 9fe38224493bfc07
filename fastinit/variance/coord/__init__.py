"""Coord: a coordinate check, over widths and steps.

In: a function that builds a model of a width. Out: slopes against width, a verdict for each layer.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes.
"""
