"""Where other projects keep their shards, how they say what weights shall be, and how they train: a file
for each.

In: a model, as a framework built, split or trains it. Out: a Part for each of its parameters, a Plan, or
a watch.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes,
variance, checkpoint.

A file is imported by whoever asks for it (``from fastinit.frameworks import megatron``), and so is the
framework: nothing else of the package knows of either. Each is proven with the real package
(``make frameworks``).
"""
