"""Features in other tools' formats: a module for each, with ``write_…`` and ``read_…``.

Every writer makes a new folder that appears whole or not at all, takes what does not follow from the
index from a ``Material``, and leaves a format's field empty where nothing is known. Text is the tokens'
own: tokens that are parts of one character are shown as that character, with the largest of their
activations, and bytes that are no character as escapes; nothing is written as mojibake.
"""
