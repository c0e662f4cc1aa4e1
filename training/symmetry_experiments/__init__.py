"""The claims of the symmetry-transformation papers as experiments: each a command with its numbers in JSON."""
