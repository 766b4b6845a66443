# XLA's and NCCL's settings for training over several GPUs; sourced by the scripts beside it. What is set already stays.

# Collectives run beside computation that does not need them: without it each waits for the other.
flags="--xla_gpu_enable_latency_hiding_scheduler=true"
# What is sent for the same purpose goes in one collective: a T6 XL layer is 60 MB in bfloat16.
flags+=" --xla_gpu_all_gather_combine_threshold_bytes=134217728 --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728"
# Gradients over `data` are summed once a step, in pieces that keep the links full.
flags+=" --xla_gpu_all_reduce_combine_threshold_bytes=268435456"
# A collective that fails, as where another process has died, ends this one instead of waiting for ever.
flags+=" --xla_gpu_nccl_terminate_on_error=true"
export XLA_FLAGS="$flags ${XLA_FLAGS:-}" # of a flag that is given twice the last counts

# NVLink's multicast needs a fabric manager that not every machine has; set 1 where yours does.
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
# The share of each GPU's memory that JAX takes at the start: the rest is NCCL's buffers, which are not JAX's.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
