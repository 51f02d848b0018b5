"""How the regimes look in every picture."""

from __future__ import annotations

#: Okabe and Ito's colours: told apart with every common kind of colour vision.
COLOURS = {"stable": "#0072B2", "restrained": "#E69F00", "divergent": "#D55E00"}
