"""The same weights give the same answers through the harness's own Hugging Face model: MHA with
RoPE is the Llama architecture.

Needs PyTorch and transformers: make test-torch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from t6jax.data.tokenizers import JsonTokenizer
from t6jax.evaluation.harness import T6LM
from t6jax.model import abstract
from tests.evaluation.local_tasks import NAMES
from tests.evaluation.models import config

pytestmark = pytest.mark.torch
LAYERS, HEADS, HEAD_DIM, D_MODEL, WIDTH, WINDOW = 3, 4, 8, 24, 40, 96


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """Byte-level BPE of a few merges, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["Question: the red house near the tree\nAnswer: a blue river runs"] * 9, trainer
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def theirs(tokenizer_file):
    """The harness's Hugging Face model on a small Llama with random weights."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: make test-torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers: make test-torch")
    from lm_eval.models.huggingface import HFLM

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=D_MODEL,
            intermediate_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            head_dim=HEAD_DIM,
            max_position_embeddings=WINDOW,
            rms_norm_eps=float(np.finfo(np.float32).eps),
            tie_word_embeddings=True,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).float()
    return HFLM(
        pretrained=llama, tokenizer=tokenizer, batch_size=4, max_length=WINDOW, device="cpu"
    )


@pytest.fixture(scope="module")
def ours(theirs, tokenizer_file):
    """The same weights in t6jax, whose norms have none: Llama's start at one."""
    weights = {name: x.detach().numpy() for name, x in theirs.model.state_dict().items()}
    assert all((x == 1).all() for name, x in weights.items() if "norm" in name)
    layers = lambda name: np.stack(
        [weights[f"model.layers.{i}.{name}.weight"].T for i in range(LAYERS)]
    )
    heads_out = lambda name: layers(name).reshape(LAYERS, D_MODEL, HEADS, HEAD_DIM)

    def turned_back(w):
        # Llama turns features (i, i + D/2) by +position, the published T6 code by -position:
        # swapping the halves of queries and keys exchanges the two
        return np.concatenate(np.split(w, 2, axis=-1)[::-1], axis=-1)

    settings = {"name": "mha", "num_heads": HEADS, "head_dim": HEAD_DIM}
    model_config = config(
        attention=settings,
        vocab_size=theirs.model.config.vocab_size,
        num_layers=LAYERS,
        d_model=D_MODEL,
        context_length=WINDOW,
    )
    model_config = type(model_config).from_dict(model_config.to_dict() | {"mlp_width": WIDTH})
    graph, state = nnx.split(abstract(model_config))
    state = nnx.to_pure_dict(state)
    state["embedding"] = weights["model.embed_tokens.weight"]
    state["blocks"] = {
        "attention": {
            "w_q": turned_back(heads_out("self_attn.q_proj")),
            "w_k": turned_back(heads_out("self_attn.k_proj")),
            "w_v": heads_out("self_attn.v_proj"),
            "w_o": layers("self_attn.o_proj").reshape(LAYERS, HEADS, HEAD_DIM, D_MODEL),
        },
        "mlp": {
            "w_1": layers("mlp.gate_proj"),
            "w_2": layers("mlp.up_proj"),
            "w_3": layers("mlp.down_proj"),
        },
    }
    model = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
    return T6LM.from_model(model, JsonTokenizer(tokenizer_file, "small"), batch_tokens=1024)


@pytest.mark.parametrize("shots", [0, 2])
def test_every_kind_of_task_gives_the_same_numbers(ours, theirs, task_folder, shots):
    def run(lm):
        manager = TaskManager(include_path=str(task_folder), include_defaults=False)
        return simple_evaluate(
            model=lm, tasks=list(NAMES), task_manager=manager, bootstrap_iters=0, num_fewshot=shots
        )

    ours, theirs = run(ours), run(theirs)
    worst, scored, generated = 0.0, 0, 0
    for task in NAMES:
        for mine, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert mine["arguments"] == other["arguments"]
            for (answer,), (expected,) in zip(mine["resps"], other["resps"], strict=True):
                if task == "local_answer":
                    assert answer == expected
                    generated += 1
                    continue
                pair = lambda x: x if isinstance(x, tuple | list) else (x, None)
                (log_likelihood, greedy), (wanted, likeliest) = pair(answer), pair(expected)
                worst, scored = max(worst, abs(log_likelihood - wanted)), scored + 1
                assert greedy == likeliest
    print(
        f"{shots} shots: {scored} log-likelihoods, largest difference {worst:.2e} nats; "
        f"{generated} generations the same"
    )
    assert scored > 50 and worst < 1e-3
    for task, metric in (
        ("local_choice", "acc"),
        ("local_choice", "acc_norm"),
        ("local_last_word", "acc"),
    ):
        key = f"{metric},none"
        assert ours["results"][task][key] == theirs["results"][task][key]
    key = "bits_per_byte,none"
    assert ours["results"]["local_text"][key] == pytest.approx(
        theirs["results"]["local_text"][key], abs=1e-5
    )
