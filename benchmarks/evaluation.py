"""How many of HellaSwag's requests a second are scored, beside the harness's own Hugging Face model
of the same size.

    python -m benchmarks.evaluation [--config=configs/xl_tpa.py] [--documents=10000]
    [--peer_documents=N] [--commit=HASH]

Writes evaluation_<gpu>.json and prints it. A document is a context of 40 to 120 tokens with 4
continuations of 10 to 30, all drawn at random; weights are random, bfloat16. The peer is a Llama
with the model's layers, width and heads of 64, batch size auto; its MLP is as wide as matrix
products run fastest at. It needs PyTorch and transformers; where it is given fewer documents, its
rate is theirs. Each goes through its _loglikelihood_tokens, in a process of its own, and is timed
once warm: the peer behind its first 100 documents, ours, which compiles for the whole of an
evaluation, the second time. The scores of some requests are also held against a forward pass over
each alone.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

from benchmarks.decode import commit

ANSWERS = 4
PARTS = {"ours": 240, "theirs": 240}  # seconds that each may take


def requests(
    documents: int, vocab_size: int, seed: int = 0
) -> list[tuple[None, list[int], list[int]]]:
    """(what the harness keeps it under, context, continuation), a document's four behind one
    another.
    """
    random = np.random.default_rng(seed)
    draw = lambda low, high: random.integers(0, vocab_size, random.integers(low, high + 1)).tolist()
    contexts = (draw(40, 120) for _ in range(documents))
    return [(None, context, draw(10, 30)) for context in contexts for _ in range(ANSWERS)]


def model_config(path: str):
    from t6jax.config import ModelConfig

    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    values = module.get_config().model.to_dict()
    return ModelConfig.from_dict(values | {"dtype": "bfloat16", "param_dtype": "bfloat16"})


def timed(call, vocab_size: int, documents: int, warm_up: int) -> dict:
    """Seconds of the warm-up, and of all once warm."""
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


def ours(config, documents: int) -> dict:
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
    lm = T6LM.of(model, ByteTokenizer())  # text is not asked for
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
    typical = lambda x: float(np.sqrt(np.mean(np.square(x))))
    return found | {
        "model": f"t6jax {config.attention.name}",
        "parameters": config.parameter_count,
        "programs": lm.scorer.compiled_programs,
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib")},
        "root_mean_square_difference_nats": {
            "requests": len(some),
            "packed_from_alone": typical(packed - half),
            "alone_from_float32": typical(half - full),
            "packed_from_float32": typical(packed - full),
            "log_likelihoods": typical(full),
        },
    }


def _alone(graph, state, some) -> np.ndarray:
    """Each request's log-likelihood by a forward pass over it alone."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    log_softmax = jax.jit(lambda state, tokens: jax.nn.log_softmax(nnx.merge(graph, state)(tokens)))
    totals = []
    for _, context, continuation in some:
        inputs = [*context, *continuation[:-1]]
        padded = jnp.array(inputs + [0] * (160 - len(inputs)))[None]
        scored = log_softmax(state, padded)[0, len(context) - 1 : len(inputs)]
        totals.append(float(scored[np.arange(len(continuation)), np.array(continuation)].sum()))
    return np.array(totals)


def theirs(config, documents: int) -> dict:
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models

    heads = max(1, config.d_model // 64)
    llama = transformers.LlamaConfig(
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
        model = transformers.LlamaForCausalLM(llama)
    torch.set_default_dtype(torch.float32)
    words = Tokenizer(
        models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>")
    )  # text is not asked for
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|endoftext|>"
    )
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size="auto", device=device)
    return timed(
        lm._loglikelihood_tokens, config.vocab_size, documents, warm_up=min(documents, 100)
    ) | {
        "model": "lm-evaluation-harness hf, Llama",
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype),
        "attention": model.config._attn_implementation,
        "intermediate_size": llama.intermediate_size,
        "batch_sizes": list(lm.batch_sizes.values()),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "lm_eval")
        },
    }


def driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/xl_tpa.py")
    parser.add_argument("--documents", type=int, default=10000)
    parser.add_argument("--peer_documents", type=int, help="default as many")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results"
    )
    parser.add_argument(
        "--commit", default=commit(), help="of the code that is timed, where there is no git to ask"
    )
    parser.add_argument("--part", choices=PARTS, help="that one alone, printed")
    args = parser.parse_args()
    counts = {"ours": args.documents, "theirs": args.peer_documents or args.documents}
    if args.part:
        result = {"ours": ours, "theirs": theirs}[args.part](
            model_config(args.config), counts[args.part]
        )
        print(json.dumps(result))
        return

    record = {
        "date": datetime.date.today().isoformat(),
        "driver": driver(),
        "commit": args.commit,
        "command": " ".join(
            [
                "python -m benchmarks.evaluation",
                *(a for a in sys.argv[1:] if not a.startswith("--out")),
            ]
        ),
        "request": "a context of 40 to 120 random tokens, 4 continuations of 10 to 30",
        "config": args.config,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "evaluation.json"
    for part, seconds in PARTS.items():
        command = [sys.executable, "-m", "benchmarks.evaluation", *sys.argv[1:], f"--part={part}"]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=True
            )
        except subprocess.SubprocessError as e:
            print(f"{part} did not end: {e}\n{e.stdout}")
            continue
        *said, last = done.stdout.splitlines()
        print(*said, sep="\n")
        record[part] = json.loads(last)
        if part == "ours":
            record["device"] = record[part].pop("device")
            path = path.with_name(f"evaluation_{record['device'].replace(' ', '_').lower()}.json")
        if "ours" in record and "theirs" in record:
            record["times_as_many"] = (
                record["ours"]["requests_per_second"] / record["theirs"]["requests_per_second"]
            )
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
