"""One module per command, each with `main(argv)`; options and loading are shared."""
