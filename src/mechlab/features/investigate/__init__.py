"""Explaining by asking: a student questions a teacher about a feature and is quizzed after every turn.

Facts about the passages seen (``facts``), a posterior over rules (``posterior``, ``search``), texts
worth asking about (``proposals``), students and teachers, the quiz, and the loop that measures
accuracy by turn. ``interact`` is the same between language models, about documents.
"""
