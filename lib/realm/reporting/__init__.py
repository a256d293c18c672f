"""What a reader sees: figures with their numbers, tables in notebooks, the report, the README's block.

Rooms in reading order: ``drawing`` (what a figure is), ``figures``, ``teaching``, ``judged`` and ``card`` (one figure
each), ``reference`` (committed runs), ``display``, ``ledger`` (claims and verdicts), ``report``, ``full_scale`` (the
plan for the paper's scale), ``regenerate`` (figures anew from their numbers).
May import: ``evaluation`` and what is below it.
"""
