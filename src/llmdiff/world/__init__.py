"""The world of the embedded default: what its scenes hold, how they are drawn, what captions say of them.

`things`, `places`, `forms`: the tables in `data/`. `scenes`, `layouts`: scenes as data. `captions`, `phrases`,
`voices`: their captions. `splits`: what training shows and what is held out. `artwork`, `rendering`, `sheets`:
pictures. Nothing here knows of models or training.
"""
