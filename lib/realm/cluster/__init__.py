"""A profile's run on a cluster: one Slurm job a stage, the simulation as a job array, and how they all stand.

Jobs are shell scripts that sbatch is given, nothing else. submitit was looked at: it pickles a Python function and
hides the script that runs it, while a stage is a command already, and whoever runs a cluster wants to read, and to send
by hand, what is sent.

Rooms in reading order: ``jobs`` (which there are), ``script`` (one job as bash), ``slurm`` (what is asked of it),
``fetch`` (all that needs a network, before), ``record`` (what was submitted), ``submission``, ``status``, ``commands``
(``python -m realm.cluster``).
May import: every wing below.
"""
