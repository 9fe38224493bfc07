"""The command line: ``python -m fastinit``.

In: words. Out: text, files, an exit status.
It may import base, elements, stream, backends, fills, init, statistics, plan, record, recipes,
variance, checkpoint.
"""
