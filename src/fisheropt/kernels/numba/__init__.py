"""CPU leaves: each rule as one compiled call over all tensors of a model. How they are built: ../README.md.

_compile.py   how code becomes machine code, and where that is kept
_memory.py    addresses, dtypes, prefetching, atomics
_plan.py      a model cut into chunks, waves and stages
_engine.py    one thread's way through a plan
_team.py      the threads
_metric.py    f^rho, fast and careful, and the scalars of a step
<rule>.py     the mathematics of a rule
"""
