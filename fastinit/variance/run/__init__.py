"""Run: a training that was watched, read again, drawn and told.

In: a file that a watch wrote. Out: numbers by step, pictures, a page.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes.
"""
