"""LSUV: weights scaled layer by layer until each output has the variance asked for.

In: a model and a batch. Out: scaled weights, and what each was scaled by.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes.
"""
