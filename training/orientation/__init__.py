"""What is measured on a model that estimates a pose: views, measures, baselines and the card that holds them."""
