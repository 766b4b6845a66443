"""The authors' kernels, called on arguments as they document them."""

import hashlib
import types

import pytest

from benchmarks import decode, published

DOCUMENTED = '''
"""What decode/flashtpa_decode_triton*.py document, in PyTorch."""
import torch

def tpa_decode_parallel_bn_triton(aq, ak, av, bq, bk, bv):
    b, n, h, r = aq.shape
    if SINGLE:
        ak, av, bk, bv = ak[..., None], av[..., None], bk[..., None], bv[..., None]
    (_, m, _, s), s_v = ak.shape, av.shape[-1]
    assert ak.shape == (b, m, h, s) and bk.shape == (b, m, 64, s)
    assert av.shape == (b, m, h, s_v) and bv.shape == (b, m, 64, s_v)
    score = torch.einsum("bnrd,bmds,bnhr,bmhs->bnhm", bq, bk, aq, ak) / (r * s * 64**0.5)
    return torch.einsum("bnhm,bmhs,bmes->bnhe", score.softmax(-1), av, bv) / s_v
'''


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "decode").mkdir()
    for single, name in published.FILES.items():
        (tmp_path / "decode" / name).write_text(DOCUMENTED.replace("SINGLE", str(single)))
    return tmp_path


def cases():
    return [
        *published.cases(decode.PAPER, 32, (16, 1, 1), 2, [128]),
        *published.cases("T6 XL", 78, (6, 2, 2), 2, [128]),
    ]


def test_the_general_kernel_is_also_timed_without_its_copy():
    assert [case["implementation"] for case in cases()] == [
        "published Triton",
        "published Triton",
        "published Triton, no copy",
    ]


@pytest.mark.torch
@pytest.mark.parametrize("case", cases(), ids=lambda case: case["implementation"])
def test_arguments_have_the_documented_axes(case, checkout):
    torch = pytest.importorskip("torch")
    module = published.load(checkout, case["ranks"][1:] == [1, 1])
    given = published.arguments(case, lambda *shape: torch.randn(shape))
    kernel = module.tpa_decode_parallel_bn_triton
    # float32 sums of 128 tokens, in two orders
    assert published.relative_error(kernel, given) < 1e-5
    if case["implementation"].endswith("no copy"):
        assert given[1].permute(0, 3, 1, 2).is_contiguous()


def test_a_checkout_is_named_by_gits_names_of_its_files(checkout):
    content = (checkout / "decode" / published.FILES[True]).read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found = published.checkout(checkout)["git_blobs"]
    assert found["decode/flashtpa_decode_triton.py"] == blob and len(found) == 2


def test_a_folder_without_the_kernels_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no decode/flashtpa_decode_triton.py"):
        published.load(tmp_path, True)


def test_the_module_is_imported_from_the_checkout(checkout):
    (checkout / "decode" / published.FILES[True]).write_text("WHERE = __file__")
    module = published.load(checkout, True)
    assert isinstance(module, types.ModuleType) and module.WHERE.startswith(str(checkout))
