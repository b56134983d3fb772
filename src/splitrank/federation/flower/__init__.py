"""Flower carries the messages of a federation; planning, training and averaging are those of a run in one process.

``server_app`` (the ServerApp: ``federation.loop`` over Flower's nodes) · ``flower_clients``, ``roster``, ``messenger``
(the clients as a round sees them, which nodes are online, messages out and in) · ``measurements``, ``links``,
``device_profile`` (measure links and machines) · ``checks`` (of updates), ``payload`` · ``client_app`` (passes messages
on, without torch), ``worker_socket``, ``worker``, ``requests`` (a client's process, and what it is asked),
``local_client``, ``prepared``, ``personal``, ``client_config`` (the client itself: its training, its texts, and what
stays with it) · ``supervisor``, ``client_proxy`` (start and guard a client's processes, its way to the server).
"""
