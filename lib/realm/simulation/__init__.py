"""UserGPT talks with a responder until a data set exists, and nothing said or paid is lost.

Rooms in reading order: ``plan`` (which conversations), ``simulators`` (who plays the user), ``engine``, ``limits``
(where conversations end by numbers), ``guardrails``, ``budget``, ``breaker``, ``journal`` (on its ``database``),
``records`` (what it tells), ``standing`` (what of it counts), ``identity`` (which words it belongs to), ``endings``,
``export``, ``run`` (a profile's run, ``python -m realm.simulation``), ``progress`` (seen from outside).
May import: ``dialogue``, ``serving``, ``conversations``, ``models``, ``core``.
"""
