"""Questions asked of many runs: sweeps, the paper's experiments with their verdicts, reports and pictures.

``sweep`` (which runs), ``member``, ``execution``, ``study`` (run what is missing), ``recorded``, ``totals``,
``results`` (the table) · ``experiments``, ``reproduce``, ``cost``, ``figures``, ``verdicts`` · ``report``,
``report_series``, ``report_charts``, ``report_clients``, ``report_limits``, ``report_page`` · ``plan_curves``,
``plan_plot``.
"""
