"""The models whose HellaSwag-like requests benchmarks.evaluation times: t6jax's and a Llama."""

import importlib
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.record import Record

ANSWERS = 4  # continuations of a context
# what the harness keeps a request under, its context, its continuation
Request = tuple[None, list[int], list[int]]


def requests(documents: int, vocab_size: int, seed: int = 0) -> list[Request]:
    """Random requests, the four of a document one after another."""
    random = np.random.default_rng(seed)

    def draw(low: int, high: int) -> list[int]:
        return random.integers(0, vocab_size, random.integers(low, high + 1)).tolist()

    contexts = (draw(40, 120) for _ in range(documents))
    return [(None, context, draw(10, 30)) for context in contexts for _ in range(ANSWERS)]


def model_config(path: str) -> Any:
    """The model of a config file, in bfloat16 throughout."""
    from t6jax.config import ModelConfig

    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    values = module.get_config().model.to_dict()
    return ModelConfig.from_dict(values | {"dtype": "bfloat16", "param_dtype": "bfloat16"})


def timed(call: Callable[..., object], vocab_size: int, documents: int, warm_up: int) -> Record:
    """Seconds of the warm-up, and of all documents once warm."""
    seconds = {}
    for name, count in (("warm_up", warm_up), ("warm", documents)):
        drawn = requests(count, vocab_size)
        begin = time.perf_counter()
        call(drawn, disable_tqdm=True)
        seconds[name] = time.perf_counter() - begin
        print(
            f"{name}: {count} documents, {seconds[name]:.2f} s, "
            f"{ANSWERS * count / seconds[name]:.0f} requests/s",
            flush=True,
        )
    return {
        "documents": documents,
        "warm_up_documents": warm_up,
        "seconds": seconds,
        "requests_per_second": ANSWERS * documents / seconds["warm"],
    }


def t6(config: Any, documents: int) -> Record:
    """t6jax's rate on random weights, and how far its packed scores are from exact ones."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from t6jax.data.tokenizers import ByteTokenizer
    from t6jax.evaluation.harness import T6LM
    from t6jax.model import abstract

    graph, state = nnx.split(abstract(config))
    leaves, tree = jax.tree.flatten(state)

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, len(leaves))
        return [
            0.02 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
        ]

    model = nnx.merge(graph, jax.tree.unflatten(tree, draw(jax.random.key(0))))
    lm = T6LM.from_model(model, ByteTokenizer())  # no request holds text
    found = timed(lm._loglikelihood_tokens, config.vocab_size, documents, warm_up=documents)

    some = requests(32, config.vocab_size)
    packed = np.array([score for score, _ in lm._loglikelihood_tokens(some, disable_tqdm=True)])
    half_state = nnx.to_pure_dict(nnx.state(model))
    half = _alone(graph, half_state, some)
    wide_config = type(config).from_dict(
        config.to_dict() | {"dtype": "float32", "param_dtype": "float32"}
    )
    with jax.default_matmul_precision("highest"):
        wide_state = jax.tree.map(lambda x: x.astype(jnp.float32), half_state)
        full = _alone(nnx.split(abstract(wide_config))[0], wide_state, some)

    def typical(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x))))

    return found | {
        "model": f"t6jax {config.attention.name}",
        "parameters": config.parameter_count,
        "programs": lm.scorer.compiled_programs,
        "versions": {"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib")},
        "root_mean_square_difference_nats": {
            "requests": len(some),
            "packed_from_alone": typical(packed - half),
            "alone_from_float32": typical(half - full),
            "packed_from_float32": typical(packed - full),
            "log_likelihoods": typical(full),
        },
    }


def _alone(graph: Any, state: Any, some: list[Request]) -> np.ndarray:
    """Each request's log-likelihood from a forward pass over that request only."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    @jax.jit
    def log_softmax(state, tokens):
        return jax.nn.log_softmax(nnx.merge(graph, state)(tokens))

    totals = []
    for _, context, continuation in some:
        inputs = [*context, *continuation[:-1]]
        padded = jnp.array(inputs + [0] * (160 - len(inputs)))[None]
        scored = log_softmax(state, padded)[0, len(context) - 1 : len(inputs)]
        totals.append(float(scored[np.arange(len(continuation)), np.array(continuation)].sum()))
    return np.array(totals)


def llama(config: Any, documents: int) -> Record:
    """The rate of the harness's Hugging Face model, a Llama of the same size."""
    import torch  # pyright: ignore[reportMissingImports] # optional
    import transformers  # pyright: ignore[reportMissingImports] # optional
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models

    heads = max(1, config.d_model // 64)
    shape = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=-(-config.swiglu_width // 128) * 128,
        num_hidden_layers=config.num_layers,
        num_attention_heads=heads,
        head_dim=config.d_model // heads,
        max_position_embeddings=config.context_length,
        tie_word_embeddings=True,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(shape)
    torch.set_default_dtype(torch.float32)
    # no request holds text
    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|endoftext|>"
    )
    hugging_face: Any = HFLM  # the harness's decorator hides its type
    lm = hugging_face(pretrained=model, tokenizer=tokenizer, batch_size="auto", device=device)
    return timed(
        lm._loglikelihood_tokens, config.vocab_size, documents, warm_up=min(documents, 100)
    ) | {
        "model": "lm-evaluation-harness hf, Llama",
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype),
        "attention": model.config._attn_implementation,
        "intermediate_size": shape.intermediate_size,
        "batch_sizes": list(lm.batch_sizes.values()),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "lm_eval")
        },
    }
