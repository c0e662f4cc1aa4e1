"""What training and service share: the model folder, the picture in front of the model, the geometry behind it."""
