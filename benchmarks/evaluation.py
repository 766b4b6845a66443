"""Scores random requests of HellaSwag's shape, next to the harness's own Hugging Face model.

    python -m benchmarks.evaluation [--config=configs/xl_tpa.py] [--documents=10000]
    [--llama_documents=N] [--out=DIR]

Writes evaluation_<gpu>.json and prints it. A document is a context of 40 to 120 random tokens with
4 continuations of 10 to 30; weights are random, bfloat16. The Hugging Face model is a Llama with
the config's layers, width and heads of 64, batch size auto; its MLP has the width at which matrix
products are fastest. It needs PyTorch and transformers, and may be given fewer documents. Each
model is called through its _loglikelihood_tokens in a process of its own, and timed once warm: the
Llama after its first 100 documents, t6jax, which compiles for a whole evaluation, the second time.
The scores of some requests are also compared with a forward pass over each request alone.
"""

import json
import subprocess
import sys

from benchmarks.evaluation_models import llama, model_config, t6
from benchmarks.record import Record, nvidia_smi, parser, provenance, write
from benchmarks.tables import markdown

# key of the record: (what measures it, seconds that it may take)
MODELS = {"t6jax": (t6, 240), "llama": (llama, 240)}


def table(record: Record) -> str:
    """Requests scored a second by both models."""
    t6jax, other, earlier = record["t6jax"], record["llama"], record.get("earlier_run")
    compiling = t6jax["seconds"]["warm_up"] - t6jax["seconds"]["warm"]
    above = (
        f"{record['device']}, {record['date']}: {record['request']}, {t6jax['documents']:,} "
        f"documents ({other['documents']:,} for the Llama), bfloat16, warm; compiling took "
        f"{compiling:.0f} s more. The Llama's search for a batch size counts."
    )
    if earlier:
        above += (
            f" In an earlier run, of {earlier['llama']['documents']:,} documents for the Llama, it "
            f"scored {earlier['llama']['requests_per_second']:,.0f} requests a second and t6jax "
            f"{earlier['t6jax']['requests_per_second']:,.0f}."
        )
    rows = [
        [name, f"{r['parameters'] / 1e9:.2f} B", f"{r['requests_per_second']:,.0f}"]
        for name, r in (
            ("**T6 XL, TPA**", t6jax),
            ("Llama, lm-evaluation-harness's `hf`, batch size auto", other),
        )
    ]
    return "\n".join([above, "", *markdown(("", "parameters", "requests a second"), rows)])


def measured_apart(name: str) -> Record | None:
    """What a model's process prints last, or None where it fails or takes too long."""
    command = [sys.executable, "-m", "benchmarks.evaluation", *sys.argv[1:], f"--only={name}"]
    _, seconds = MODELS[name]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as e:
        print(f"{name} failed: {e}\n{e.stdout}")
        return None
    *said, last = done.stdout.splitlines()
    print(*said, sep="\n")
    return json.loads(last)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--config", default="configs/xl_tpa.py", help="file of the t6jax model")
    arguments.add_argument("--documents", type=int, default=10000)
    arguments.add_argument("--llama_documents", type=int, help="default: as many as --documents")
    arguments.add_argument("--only", choices=MODELS, help="measure one model and print its numbers")
    args = arguments.parse_args()
    counts = {"t6jax": args.documents, "llama": args.llama_documents or args.documents}
    if args.only:
        measure, _ = MODELS[args.only]
        print(json.dumps(measure(model_config(args.config), counts[args.only])))
        return

    device = nvidia_smi("name") or "cpu"
    record = provenance("benchmarks.evaluation", device, args.commit) | {
        "request": "a context of 40 to 120 random tokens, 4 continuations of 10 to 30",
        "config": args.config,
    }
    for name in MODELS:
        if found := measured_apart(name):
            record[name] = found
            write(args.out, "evaluation", record)
    if all(name in record for name in MODELS):
        rates = [record[name]["requests_per_second"] for name in MODELS]
        record["times_as_many"] = rates[0] / rates[1]
        write(args.out, "evaluation", record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
