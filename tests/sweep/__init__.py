"""The sweep: real constructors, each run eagerly and within deferred(), and compared.

    make sweep                              all, in an environment of its own: an hour or two
    make sweep SWEEP="peft timm/vit*"       some: packages, or package/model with * and ?
    make sweep SWEEP="--again differs"      those that had this outcome

Packages are pinned in ``requirements.txt``, beside the torch that the Makefile takes. A package's models
are found by asking it (model types, registered names, classes), and made small by what the arguments
of their constructors, or the fields of their configurations, are called (``shrink.py``). What can't be
had says why.

The eager model is the reference, and ``tests/as_eager.py`` the one judge: names, ties, identity,
sharing of memory, dtypes, devices, strides, constants, hooks; and of random numbers the laws. Nothing
here knows what fastinit does. Beside it ``checks.py`` asks further questions of the same models.

Each model is looked at in a process of its own, with a limit of time and memory, and nothing is fetched
from anywhere (``alone.py``). An answer is kept in ``build/sweep.jsonl`` as it comes, and a sweep that
was broken off goes on from there. At the end ``results.json`` has a line for each model:

    outcome     agrees, differs (with the differences), raises (with the error), or skipped (why)
    parameters  elements of distinct parameters
    seconds     to build it eagerly, and to record and write it
    checks      what else was asked: "holds", or why it doesn't

The same for some models of transformers is a test, ``test_sample.py``.
"""
