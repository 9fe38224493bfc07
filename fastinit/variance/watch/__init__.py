"""Watch: the moments of what flows through a model that runs, layer by layer.

In: a model that runs. Out: a row of numbers for each layer; in a training, for each step.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes.
"""
