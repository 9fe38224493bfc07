"""What a model does with variance: a room for each question, and what they share.

``lsuv`` sets it, ``watch`` measures it, ``run`` tells of a training that was watched, ``coord`` compares
widths. Here: the layers that all of them look at, and the style of pictures.

In: a model and a batch. Out: what was measured; scaled weights.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes.
"""
