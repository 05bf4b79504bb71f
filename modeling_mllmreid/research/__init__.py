"""Research code of the commands `demo` and `ablate`: the tiny LLaVA, the analyses and the ablation."""
