"""From a prompt to PNG files: models, drawing, batches, pictures, grids, attention maps."""
