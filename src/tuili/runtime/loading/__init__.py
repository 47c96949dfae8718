"""From a name to a model that runs in this process."""
