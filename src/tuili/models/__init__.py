"""What models are, as data: specs, the families that read them from configurations, names, shapes, frequencies."""
