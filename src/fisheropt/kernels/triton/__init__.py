"""CUDA leaves: each rule as a few launches over all tensors of a model. How they are built: README.md.

    _plan.py      a model cut into chunks, as a table on the device
    _memory.py    tensors as addresses, and the dtypes behind them
    _numbers.py   arithmetic that stays finite, f^rho, and numbers that travel in float64
    _sums.py      whole-tensor sums in an order that is always the same
    <rule>.py     the mathematics of a rule

Every launch covers the whole list of tensors. Nothing is read back to the host; statistics and what follows from them
stay on the device, in the table of the plan.
"""
