"""Ask questions of many runs: sweeps, the paper's experiments with their verdicts, reports and pictures.

``sweep`` (the trials it consists of), ``trial``, ``execution``, ``study`` (run what is missing), ``run_reader``,
``totals``, ``results`` (the table) · ``experiments``, ``reproduce``, ``cost``, ``figures``, ``verdicts`` · ``report``,
``report_charts``, ``report_shares``, ``report_page`` · ``plan_curves``, ``plan_plot``.
"""
