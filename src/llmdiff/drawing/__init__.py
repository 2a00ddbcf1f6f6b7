"""From an order to a PNG: models, drawing, batches, pictures, grids, attention maps."""
