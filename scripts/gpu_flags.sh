# XLA's and NCCL's settings for training on several GPUs, sourced by the other scripts. Settings in the environment win.

# Overlap collectives with computation that does not need their results.
flags="--xla_gpu_enable_latency_hiding_scheduler=true"
# Combine a layer's collectives into one: a T6 XL layer is 60 MB in bfloat16.
flags+=" --xla_gpu_all_gather_combine_threshold_bytes=134217728 --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728"
# Sum gradients over `data` once a step, in pieces large enough to keep the links full.
flags+=" --xla_gpu_all_reduce_combine_threshold_bytes=268435456"
# End this process when a collective fails, as after the death of another process, instead of waiting forever.
flags+=" --xla_gpu_nccl_terminate_on_error=true"
export XLA_FLAGS="$flags ${XLA_FLAGS:-}" # the last of two equal flags counts

# NVLink's multicast needs a fabric manager, which not every machine has; set 1 if yours does.
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
# The share of each GPU's memory that JAX allocates at the start. NCCL's buffers need the rest.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
