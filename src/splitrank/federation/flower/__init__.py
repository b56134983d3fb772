"""Flower carries the messages of a federation; planning, training and averaging are those of a run in one process.

``server_app`` (the ServerApp: ``federation.loop`` over Flower's nodes) · ``flower_clients``, ``membership``, ``post``
(the clients as a round sees them, who is there, messages out and in) · ``measurements``, ``links``, ``machine`` (what
is measured) · ``checks`` (what an update must be), ``payload`` · ``client_app`` (passes messages on, without torch),
``line`` (the worker's socket), ``worker``, ``prepared``, ``personal``, ``own_settings`` (a client: its texts, its model
and what stays with it) · ``station``, ``tunnel`` (start and guard a client's processes, its way to the server).
"""
