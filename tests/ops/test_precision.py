"""Precision is for the block that asks for it."""

from __future__ import annotations

import pytest
import torch

from ops.precision import precise


@pytest.mark.parametrize(("precision", "loose", "kind"), [("fp32", False, 32), ("tf32", True, 32), ("bf16", True, 16)])
def test_a_product_is_of_the_precision_asked_for(precision, loose, kind):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with precise(torch.device("cpu"), precision):
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == loose
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {32: torch.float32, 16: torch.bfloat16}[kind]
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_an_error_puts_it_back_too():
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), precise(torch.device("cpu"), "tf32" if not before else "fp32"):
        {}["key"]
    assert torch.backends.cudnn.allow_tf32 == before
