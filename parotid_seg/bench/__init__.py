"""How fast a model runs here, on which engine, and why: `parotid-seg bench`."""
