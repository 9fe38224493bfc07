"""Where other projects keep their shards, and how they say what weights shall be: a file for each.

In: a model, as a framework built and split it. Out: a Part for each of its parameters, or a Plan.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes,
variance, checkpoint.

A file is imported by whoever asks for it (``from fastinit.frameworks import megatron``), and so is the
framework: nothing else of the package knows of either. Each is proven with the real package
(``make frameworks``).
"""
