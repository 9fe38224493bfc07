"""What knows nothing of us: text, files, memory, call stacks, and whose files these are.

In: plain values. Out: plain values.
It imports no other room.
"""
