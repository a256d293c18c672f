"""What came of it, each number with its interval: likelihood, realism, MT-Bench, and the published numbers.

Rooms in reading order: ``held_out`` (nothing evaluated was trained on), ``intervals``, ``measure`` (a number with
its interval), ``perplexity``, ``user_turns`` (human turns foretold), ``termination`` (knowing when to stop),
``two_sample`` (can a classifier tell?), ``leaving_out`` (its variance), ``realism``, ``topics``, ``corpus``,
``mt_bench``, ``kept`` (answers, by what shaped them), ``published`` (others' numbers, in ``published/``).
May import: ``cleaning``, ``training``, ``simulation`` and what is below them.
"""
