"""Carrying methods out: one executor for a single run and for the comparison of all on one budget.

Flows in: a configuration and methods. Flows out: ``result.json`` of one method's run, or ``comparison.json`` and its page.
"""
