"""The stages in order: what each reads and writes, what may be skipped, and how a notebook is run headlessly.

Rooms in reading order: ``stages`` (and what every notebook opens with), ``imports`` (the files behind a notebook),
``identity`` (what a stage is made of: may it be skipped?), ``marks`` (begun, done, set aside), ``counts`` and
``checks`` (what would stop a run), ``surroundings`` (of a notebook), ``lab`` (reading along), ``log`` (of a notebook at
work), ``pages`` (of executed notebooks), ``runner``, ``tidy``, ``commands`` (``python -m realm.pipeline``).
May import: every wing below.
"""
