"""The demo: a page in a browser that asks a model for entities, served to this machine alone."""
