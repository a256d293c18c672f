"""QLoRA fine-tuning of either side of the dialogue, and how likely held-out turns are under a model.

Rooms in reading order: ``base`` (model and adapter), ``rows``, ``loss``, ``trainer``, ``likelihood``, ``sampling``,
``artefacts`` (adapter and merged model), ``launch`` (one process a GPU; ``python -m realm.training``), ``controls``
(and students), ``children`` (a launcher's last words), ``memory``.
May import: ``dialogue``, ``serving``, ``conversations``, ``models``, ``core``.
"""
