"""ReaLM-repro: train the user, let it talk, train the assistant on what was said.

The wings, lowest floor first; a wing imports only from floors below it, and inside a wing nothing goes in circles:
  0  core                               the ground: profiles, files, secrets, metrics, manifests, seeds
  1  conversations, models              the record and its files; assets, GGUF, shapes, estimates
  2  dialogue, serving                  from conversation to tokens; endpoints and local servers
  3  cleaning, training, simulation     the three things that are done
  4  evaluation                         what came of it, with intervals
  5  reporting                          figures, tables, the report
  6  pipeline, chat                     how notebooks are run; a talk at the terminal

``pins`` stands alone: it runs before anything is installed. Each wing's own docstring lists its rooms.
"""

import realm.core.quiet  # noqa: F401  (before the libraries that it quiets)

__version__ = "0.1.0"
