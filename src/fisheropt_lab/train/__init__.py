"""One training run on one process or many: `fisheropt train`.

request.py      what the user typed -> plan and execution, with one clear line for everything that cannot be
plan.py         Plan: what decides the loss curve; Execution: what does not
world.py        the processes: who am I, sums over all, one does it for all
parallel.py     the model in DDP or FSDP2
batches.py      which part of the global batch is mine
evaluation.py   the validation loss, shared out
loop.py         the loop
stop.py         SIGTERM and Ctrl-C as a wish to stop after the step
state.py        model and optimizer to and from files, whatever the sharding
manifest.py     what a checkpoint says about itself, and every reason not to load it
checkpoints.py  a folder of complete checkpoints
folder.py       the run folder: plan, metrics, result, picture
display.py      progress, on the first process
curves.py       curves.png
"""
