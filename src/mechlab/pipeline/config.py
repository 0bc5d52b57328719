"""The settings of the main job."""

from __future__ import annotations

import shlex
from pathlib import Path

from mechlab.settings import Settings


class RunConfig(Settings):
    """Run the whole job: harvest, train an SAE, evaluate it, find a circuit, explain, score, export a page.

    Called again with the same settings it resumes what is unfinished.

    Example: mechlab run --model fable --task ioi --out runs/demo
    """

    model: str = "fable"
    """The subject: "fable" (bundled), a directory in Hugging Face layout, or a hub name."""
    site: str | None = None
    """Where to read activations (TransformerLens hook name); the middle block's output by default."""
    data: str | None = None
    """Corpus: a .txt, .jsonl or .parquet file, a directory of them, or a hub dataset; fable has its own."""
    column: str = "text"
    """Field of the corpus that holds the text."""
    skip_corrupt: bool = False
    """Leave corrupt rows of the corpus out; they are counted and named in the stores' manifests."""
    task: str = "ioi"
    """Task whose circuit to find (ioi, greater_than, induction, …), or "none"."""
    out: Path = Path("runs/demo")
    """Run directory."""
    tokens: int = 1_000_000
    """Tokens to harvest for training."""
    train_tokens: int | None = None
    """Rows to train on, counting repeats; 1.5 million by default."""
    heldout_tokens: int = 150_000
    """Tokens to harvest for scoring explanations; the dictionary is evaluated on as many others."""
    n_ctx: int | None = None
    """Context length in tokens, BOS included; the model's own, at most 512, by default."""
    d_sae: int | None = None
    """Number of latents; by default the power of two from 8 times the site's width on, at least 1,024."""
    k: int | None = None
    """Active latents per token; by default 16 at sites up to 256 wide, else 32."""
    seed: int = 0
    """The one seed of the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str | None = None
    """Floating type of the model: float32, bfloat16 or float16."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code."""
    overwrite: bool = False
    """Replace what the run directory holds when it was made with other settings."""

    def command(self) -> str:
        """The command line that makes this run again."""
        words = ["mechlab", "run"]
        for name, field in RunConfig.model_fields.items():
            value = getattr(self, name)
            if value != field.default and name != "overwrite":
                words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return shlex.join(words)
