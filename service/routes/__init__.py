"""One file a resource; each gives a router that `app` includes."""
