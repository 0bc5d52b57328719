"""Explanations and judgements from language models.

- ``client``: what is asked (``Request``) and what comes back (``Reply``, ``Failure``); who answers:
  ``openai_client``, ``anthropic_client``, ``local``.
- ``job``: ``LlmJob`` sends many requests at once (``sending``), keeps every answer (``cache``) and its
  price (``ledger``), and stays within a budget.
- ``explainer``, ``judge``, ``simulator``: who explains, judges, predicts and writes through a job.
- ``audit``: whether the judge can be trusted.
- ``server``: a scripted server, for trying all of this without a model.
"""
