"""The world of the embedded default: its scenes, their pictures and their captions.

`things`, `places`, `forms`: the tables in `data/`. `scenes`, `layouts`: scenes as data. `captions`, `phrases`,
`voices`: their captions. `splits`: training scenes and held-out scenes. `artwork`, `rendering`, `sheets`: pictures.
`checker`, `reading`, `expected`: what a picture shows, compared with its caption. `packaged`: the trained models. This
package does not depend on training.
"""
