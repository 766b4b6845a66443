"""The training step of T6 in PyTorch: torch.compile, bfloat16 autocast, fused AdamW.

    python -m benchmarks.torch_t6 LAYERS D_MODEL HEADS ROWS [mha]

Prints one JSON object. `benchmarks.train --torch` runs it to compare with.
"""

import json
import math
import statistics
import sys
import time

import torch  # pyright: ignore[reportMissingImports] # optional
from torch import nn  # pyright: ignore[reportMissingImports] # optional
from torch.nn import functional as F  # pyright: ignore[reportMissingImports] # optional

T, D, RANKS, VOCABULARY = 1024, 64, (6, 2, 2), 50304


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE, feature i paired with i + D/2."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).type_as(x)


class TPA(nn.Module):
    """Tensor Product Attention with R_Q, R_K, R_V = 6, 2, 2."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.w_a = nn.ModuleList(nn.Linear(d_model, heads * r, bias=False) for r in RANKS)
        self.w_b = nn.ModuleList(nn.Linear(d_model, r * D, bias=False) for r in RANKS)
        self.w_o = nn.Linear(heads * D, d_model, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        dense = []
        for i, (w_a, w_b, rank) in enumerate(zip(self.w_a, self.w_b, RANKS)):
            a = w_a(x).view(batch * tokens, self.heads, rank)
            b = w_b(x).view(batch, tokens, rank, D)
            b = rotate(b, cos, sin) if i < 2 else b
            product = torch.bmm(a, b.reshape(batch * tokens, rank, D)) / rank
            dense.append(product.view(batch, tokens, self.heads, D).transpose(1, 2))
        out = F.scaled_dot_product_attention(*dense, is_causal=True)
        return self.w_o(out.transpose(1, 2).reshape(batch, tokens, -1))


class MHA(nn.Module):
    """Multi-head attention."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.w_qkv = nn.ModuleList(nn.Linear(d_model, heads * D, bias=False) for _ in range(3))
        self.w_o = nn.Linear(heads * D, d_model, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = (w(x).view(*x.shape[:2], self.heads, D) for w in self.w_qkv)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(
            *(y.transpose(1, 2) for y in (q, k, v)), is_causal=True
        )
        return self.w_o(out.transpose(1, 2).reshape(*x.shape[:2], -1))


class Block(nn.Module):
    """Attention and SwiGLU, each after an RMSNorm without weights."""

    def __init__(self, attention: type[nn.Module], d_model: int, heads: int) -> None:
        super().__init__()
        width = 8 * d_model // 3
        self.attention = attention(d_model, heads)
        self.w_1, self.w_2 = (nn.Linear(d_model, width, bias=False) for _ in range(2))
        self.w_3 = nn.Linear(width, d_model, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(F.rms_norm(x, x.shape[-1:]), cos, sin)
        y = F.rms_norm(x, x.shape[-1:])
        return x + self.w_3(F.silu(self.w_1(y)) * self.w_2(y))


class T6(nn.Module):
    """T6, or a Llama-like model where attention is MHA; returns the loss."""

    def __init__(self, attention: type[nn.Module], layers: int, d_model: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, d_model)
        self.blocks = nn.ModuleList(Block(attention, d_model, heads) for _ in range(layers))
        nn.init.uniform_(self.embedding.weight, -(d_model**-0.5), d_model**-0.5)
        angle = torch.outer(torch.arange(T), 10000.0 ** (-torch.arange(0, D, 2) / D))[None, :, None]
        self.register_buffer("cos", angle.cos().bfloat16(), persistent=False)
        self.register_buffer("sin", angle.sin().bfloat16(), persistent=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(F.rms_norm(x, x.shape[-1:]), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, VOCABULARY).float(), targets.reshape(-1))


def main(layers: int, d_model: int, heads: int, rows: int, attention: type[nn.Module]) -> None:
    """Times the step and prints what was found."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = T6(attention, layers, d_model, heads).cuda()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    compiled = torch.compile(model)
    batches = [torch.randint(0, 50257, (rows, T + 1), device="cuda") for _ in range(4)]

    def steps(n: int) -> torch.Tensor:
        for i in range(n):
            window = batches[i % 4]
            with torch.autocast("cuda", torch.bfloat16):
                loss = compiled(window[:, :-1], window[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        return loss

    start = time.perf_counter()
    steps(1)
    compile_seconds = time.perf_counter() - start
    steps(3)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        loss = steps(6)
        seconds.append((time.perf_counter() - start) / 6)
    result = {
        "torch": torch.__version__,
        "rows": rows,
        "layers": layers,
        "step_milliseconds": [1e3 * s for s in seconds],
        "tokens_per_second": rows * T / statistics.median(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "compile_seconds": compile_seconds,
        "last_loss": loss.item(),
        "uniform_loss": math.log(VOCABULARY),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    layers, d_model, heads, rows = map(int, sys.argv[1:5])
    main(layers, d_model, heads, rows, MHA if "mha" in sys.argv[5:] else TPA)
