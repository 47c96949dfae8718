"""Wire formats of the server, one module or package each, found by looking here; each exports DIALECT."""
