"""What came of it, each number with its interval: likelihood, realism, MT-Bench, and the published numbers.

Rooms in reading order: ``held_out`` (nothing evaluated was trained on), ``intervals``, ``perplexity``, ``teaching``
(students of corpora that differ in who asks), ``lessons`` (what came of it), ``user_turns`` (human turns foretold),
``termination`` (knowing when to stop), ``realism``, ``topics``, ``corpus``, ``mt_bench``, ``kept`` (answers, by what
shaped them), ``published`` (others' numbers, in ``published/``).
May import: ``cleaning``, ``training``, ``simulation`` and what is below them.
"""
