"""The data room: rows of any accepted shape to tokenised pools, and mixtures drawn from them.

Flows in: ``config.Source`` blocks and the model's tokenizer. Flows out: ``Pool``s (what every phase reads) and
``Mixture``s (what is trained). Nothing here needs torch.
"""
