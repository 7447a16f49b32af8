"""The parts of `benchmarks/evidence_grid.py`.

`design` says what is measured, `data` draws the rows, `features` computes what rows are compared
by, `pools` selects, `trials` tunes and measures, `results` keeps what was measured, and `tables`
shows it.
"""
