from . import cubin_loader as cubin_loader
from .core import JitSpec as JitSpec
from .core import JitSpecNvcc as JitSpecNvcc
from .core import build_jit_specs as build_jit_specs
from .core import gen_jit_spec as gen_jit_spec
from .core import get_module as get_module
from .cute_dsl_core import JitSpecCuteDsl as JitSpecCuteDsl
