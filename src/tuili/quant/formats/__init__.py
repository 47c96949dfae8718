"""One quantization format per file, each exporting FORMAT. None knows another."""
