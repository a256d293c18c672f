"""ReaLM-repro: train the user, let it talk, train the assistant on what was said.

Rooms, lowest floor first; a room imports only from floors below:
  0  provenance, profile, intervals, json_stream, pins, guard, architecture, breaker
  1  conversation, assets, tokens, workload, model_card
  2  template, funnel, splits, llama_cpp, estimate, journal
  3  sessions, markup, language, private_data, duplicates, training, endpoint
  3  simulators, starts, guardrails, budget, export
  4  authors_cleaning, simulation, user_turns
  5  cleaning, realism, mt_bench
  6  paper, figures, report, topics
  7  display, pipeline, chat
"""

__version__ = "0.1.0"
