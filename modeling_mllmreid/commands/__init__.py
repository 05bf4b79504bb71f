"""One module per command of run_reid.py, each with `main(argv)`; options and loading are shared."""
