"""``idealmix diagnose CONFIG --WHAT``: the questions that a user can ask of their own run.

Flows in: a configuration, whose output folder holds a run or is empty. `checkpoint` finds or trains the model, one module a
question asks `idealmix.diagnostics` and puts the figures into an `Answer`: a sentence, tables, notes, JSON. `page` shows them.
"""
