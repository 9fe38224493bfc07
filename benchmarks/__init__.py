"""Benchmarks: fastinit beside torch.nn.init, NumPy and the machine's limit, in one run."""
