"""Options of the commands: dataclasses, the command line, YAML files and value ranges."""
