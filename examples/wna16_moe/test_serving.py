"""Serving tests that the guard judges: red after `warmup_as_it_was`, green after `warmup_that_covers`."""

from __future__ import annotations

import pytest
import torch

from examples.wna16_moe.layer import default_layer, request, serve
from examples.wna16_moe.reference import TOLERANCE, kernels_execute, reference_output

# 8 takes the small-batch path; the others reach five of the six classes of variants.
REQUEST_SIZES = (8, 25, 28, 500, 501, 1024)

# Triton 3.9 announces a change of default at a process's first compile; where warnings are errors, that would hide
# the guard's verdict behind it.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset:UserWarning")


@pytest.mark.jitguard
@pytest.mark.parametrize("tokens", REQUEST_SIZES)
def test_request_is_served_without_compiling(tokens: int) -> None:
    output = serve(tokens)

    assert output.shape == (tokens, default_layer().config.hidden)
    if kernels_execute():
        torch.testing.assert_close(output.float(), reference_output(default_layer(), request(tokens)), **TOLERANCE)
