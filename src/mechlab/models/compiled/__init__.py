"""Transformers compiled from programs, whose circuits are known because they were written down."""

from mechlab.models.compiled.compiler import compile_program
from mechlab.models.compiled.model import Compiled
from mechlab.models.compiled.programs import PROGRAMS, Program, gates, program_named
from mechlab.models.compiled.subject import compiled_subject
from mechlab.models.compiled.task import compiled_task
from mechlab.models.compiled.truth import truth

__all__ = [
    "PROGRAMS",
    "Compiled",
    "Program",
    "compile_program",
    "compiled_subject",
    "compiled_task",
    "gates",
    "program_named",
    "truth",
]
