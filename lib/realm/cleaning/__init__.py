"""The ShareGPT funnel: named steps that account for every conversation, in two presets.

Rooms in reading order: ``funnel`` (steps and their reports), ``presets`` (paper and fixed), ``authors`` (their rules,
slips included), ``markup``, ``language``, ``private_data``, ``duplicates``.
May import: ``dialogue``, ``conversations``, ``models``, ``core``.
"""
