"""Generation: prompts prefilled once, then one token at a time against the factor caches."""

from t6jax.generation.api import encode, generate, load_tokenizer
from t6jax.generation.detokenizer import Detokenizer
from t6jax.generation.sampling import Sampling
from t6jax.generation.streaming import stream

__all__ = ["Detokenizer", "Sampling", "encode", "generate", "load_tokenizer", "stream"]
