"""Models and data by name, and what is known of a model before its weights are loaded.

Rooms in reading order: ``assets`` (packages, Hub, local files by name), ``catalogue`` (the table of packages),
``fetching`` (whole, verified, once), ``hub``, ``weights`` (which model a name means, by content), ``gguf`` (in and out
of llama.cpp's files), ``pretokenizers`` (how they cut), ``architecture``, ``workload``, ``estimate`` (memory and time
before anything is paid), ``full_scale`` (the same of every stage at the paper's scale), ``model_card``.
May import: ``core``.
"""
