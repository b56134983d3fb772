"""Questions asked of many runs: sweeps, the paper's experiments, figures, reports."""
