"""Metrics of pictures: prompt alignment, quality, diversity, and distance between sets.

`PictureMetric` scores single pictures, `SetMetric` compares two sets of pictures, `DiversityMetric` compares pictures
of one prompt. `loading.load_metric` loads any of them by name.
"""
