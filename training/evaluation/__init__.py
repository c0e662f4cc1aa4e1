"""What is measured of a finished run and drawn of it: EquiVAE (equivae*.py), models that find a pose (pose*.py)."""
