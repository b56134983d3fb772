"""The hall where both wings meet: a federation's rounds, its settings turned into problems and models, its drivers.

``rounds`` (one round), ``loop`` (a run), ``stopping``, ``resume`` (go on with a run), ``state``, ``checkpoints``,
``run_folder``, ``manifest``, ``export``, ``export_forms``, ``tracking`` · ``texts``, ``sizes``, ``costs``, ``backlog``
(which merged parts each client lacks), ``pruning`` (ranks that clients gave up), ``slices`` (what clients chose to
train), ``radio``, ``per_client``, ``selection`` (who takes part), ``problems``, ``able`` (from settings to P1),
``plan_report``, ``methods_report``, ``round_lines`` · ``clients`` (what a round asks of them), ``data``, ``partitions``
(who holds which texts), ``model``, ``wire``, ``in_process``, ``flower`` (the drivers).
"""
