"""From conversation to tokens and labels: one way for training, for serving and for looking at it.

Rooms in reading order: ``format`` (chat templates and the flip), ``tokens`` (each turn once), ``encoder`` (ids and
label masks), ``segments`` (long conversations cut), ``audit`` (the mask decoded back to text).
May import: ``conversations``, ``models``, ``core``.
"""
