"""Metrics of pictures: prompt alignment, quality, diversity, and distance between sets.

There are two kinds: `PictureMetric` scores single pictures, `SetMetric` compares a set of pictures with another.
`loading.load_metric` loads either by name.
"""
