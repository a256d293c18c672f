"""Endpoints: any service of the OpenAI protocol behind one client, and local servers that always end.

Rooms in reading order: ``words`` (what of an endpoint shapes them), ``reply`` (what an answer says), ``faults`` (what
is said instead of one), ``dialect`` (how a service wants to be asked), ``wire`` (proxies, certificates), ``client``
(requests and their errors), ``local`` (reaching an endpoint, starting a server), ``gpus`` (which a server has),
``llama_cpp`` (the default engine), ``counting`` (tokens, by a server's own tokenizer), ``untrained`` (a stage's base
model, served like what it became), ``child`` (a process that cannot outlive its parent).
May import: ``conversations``, ``models``, ``core``.
"""
