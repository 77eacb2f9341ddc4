"""Speed, compared: every contender alone in its process, verified first, warmed up, then timed in turns.

Thread pools of one process stall each other for milliseconds (OpenMP's, OpenBLAS's, PyTorch's), so a contender
is a worker process that sleeps until it is told to run a round.
"""
