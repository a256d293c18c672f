"""What came of it, each number with its interval: likelihood, realism, MT-Bench, and the published numbers.

Rooms in reading order: ``held_out`` (nothing evaluated was trained on), ``intervals``, ``perplexity``, ``user_turns``
(human turns foretold), ``termination`` (knowing when to stop), ``realism``, ``topics``, ``corpus``, ``mt_bench``,
``kept`` (answers, by what shaped them), ``published`` (others' numbers, in ``published/``), ``names`` (of metrics, in
words), ``claims`` (of the paper, judged).
May import: ``cleaning``, ``training``, ``simulation`` and what is below them.
"""
