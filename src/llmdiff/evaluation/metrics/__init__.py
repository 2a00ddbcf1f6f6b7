"""Metrics of pictures: how well they fit their prompts, how good they look, how near to others they are.

Two kinds, by what they are given: `PictureMetric` scores every picture by itself, `SetMetric` compares a set of
pictures with another, or with itself. `loading.load_metric` finds either by its name.
"""
