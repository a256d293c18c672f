"""The stages in order: what each reads and writes, what may be skipped, and how a notebook is run headlessly.

Rooms in reading order: ``stages`` (and what every notebook opens with), ``imports`` (the files behind a notebook),
``identity`` (what may be skipped), ``counts`` and ``checks`` (what would stop a run), ``surroundings`` (of a
notebook), ``runner``, ``commands``
(``python -m realm.pipeline``).
May import: every wing below.
"""
