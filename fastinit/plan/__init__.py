"""What every parameter shall be, and writing it: the Plan, its JSON, its groups.

In: names and Fills. Out: a written model, a file, a table.
It may import base, elements, stream, backends, fills, init, statistics.
"""
