"""Dictionary metrics on labelled concepts, and on decoders alone.

Functions on tensors: codes, activations ``[row d_in]``, labels ``[row concept]`` and the document of
each row. Documents are the unit of every split and of every interval; ``rows.concept_rows`` makes
such rows of Fable's documents. Shares of latents and decoder geometry have latents as their unit.
"""
