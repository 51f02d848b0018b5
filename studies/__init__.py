"""The papers' studies as sweeps: one file a study, one page a study in `docs/studies/`.

Run: make study NAME=one-layer-cnn
     .venv/bin/python -m studies one-layer-cnn equations -o seeds=10 --into /tmp/pages

A study has a `STUDY` (`studies.page.Study`): it runs sweeps from `sweeps/presets/studies/` and says
what it found beside the paper's numbers. The program alone writes the page, so each number on it
was measured. stabmap itself imports nothing from here.
"""
