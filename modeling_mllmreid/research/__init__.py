"""Research code of `demo`, `ablate` and `parts`: the tiny LLaVA, the analyses, the ablation, public weights."""
