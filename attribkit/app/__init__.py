"""The app: look inside a network in the browser.

What it does lies in modules that know nothing of a browser: `view` (what is looked at), `links` (a view as an address),
`shelf` (the models), `pictures`, `subject` (a model and a picture, and what was computed of them), `top` (mined
patches), `drawing`, `jobs` (work that can be watched and stopped) and `snippet` (the Python code of a view). `pages`
writes HTML; `actions` and `results` do what the page's controls ask; only `ui`, `looks` and `serving` know gradio.

Importing this package imports neither torch nor gradio.
"""
