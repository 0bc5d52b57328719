"""File formats of dictionaries: SAELens' is written and read, the others are read.

| format | files | what is read |
|---|---|---|
| ``mechlab`` | ``manifest.json`` and SAELens' two files | everything that mechlab trains |
| ``saelens`` | ``cfg.json``, ``sae_weights.safetensors`` | all architectures of sae-lens 6.54, older files |
| ``dictionary_learning`` | ``ae.pt``, ``config.json`` | the classes of its trainers |
| ``sparsify`` | ``cfg.json``, ``sae.safetensors`` | TopK dictionaries, transcoders, skip transcoders |
| ``gemma_scope`` | ``params.npz`` | Gemma Scope's dictionaries and transcoders |
| ``gemma_scope_2`` | ``config.json``, ``params.safetensors`` | the same of Gemma Scope 2, also affine |
| ``openai`` | a pickled file | TopK (on normalised rows) and ReLU autoencoders |
| ``sae_lens:RELEASE/ID`` | a release on the hub | whatever sae-lens' own loader reads |

Weights become float32, exactly; codes and reconstructions are those of the format's own library
(tested). What mechlab has no architecture for is held as sae-lens' own module (``wrapped.Foreign``).
"""
