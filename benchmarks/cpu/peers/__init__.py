"""How each peer is installed and opened at its best settings, one file each. Drivers live in tuili.runtime.bench."""
