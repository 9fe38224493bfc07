"""What a model does with variance: watching it, setting it (LSUV), drawing it.

In: a model and a batch. Out: what was measured; scaled weights.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes.
"""
