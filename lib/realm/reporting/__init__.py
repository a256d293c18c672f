"""What a reader sees: figures with their numbers, tables in notebooks, the report, the README's block.

Rooms in reading order: ``figures``, ``teaching`` and ``card`` (two of them), ``display``, ``report``.
May import: ``evaluation`` and what is below it.
"""
