"""Programs to compare with, one file each. They are measured by the same definitions and know nothing of each other."""
