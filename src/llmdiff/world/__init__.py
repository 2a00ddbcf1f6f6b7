"""The world of the embedded default: its scenes, their pictures and their captions.

`things`, `places`, `forms`: the tables in `data/`. `scenes`, `layouts`: scenes as data. `captions`, `phrases`,
`voices`: their captions. `splits`: training scenes and held-out scenes. `artwork`, `rendering`, `sheets`: pictures.
This package does not depend on models or training.
"""
