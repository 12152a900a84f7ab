"""Files that are rendered for a machine. They are data, not modules: read with importlib.resources, never imported."""
