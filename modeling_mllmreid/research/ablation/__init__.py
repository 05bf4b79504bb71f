"""The ablation: plan, runs, contrasts, tables and report."""
