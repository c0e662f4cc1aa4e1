"""One file a resource: its `add` puts its routes into the router that `api` gives it."""
