"""Whole networks before the judges: without a fault, and with one wrong rule somewhere inside.

`network` says what a network is, `parts` what it is made of; `perceptrons`, `images`, `sequences`, `models` and
`modules` build them and `right` lists them; `faults` says what can be wrong with one rule, and `wrong` puts faults in
their places. `trial` asks the judges, `table` counts.
"""
