"""The zoo run: every model of timm's own, on the meta device and, one a family, with real numbers.

``make zoo`` runs it and writes ``docs/zoo.md``; it takes an hour or two and goes on where it was stopped.

`names` lists the models, `activity` accounts for every activation of a forward pass without the engine's help, `meta`
and `real` check one model each, `journal` keeps what is finished, `page` writes the table.
"""
