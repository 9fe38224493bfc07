"""Constructors, recorded: what they would have done to memory, as a Plan.

In: a constructor that runs. Out: a model on meta, and its Plan.
It may import base, elements, stream, backends, fills, init, statistics, plan.
"""
