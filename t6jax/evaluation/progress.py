"""Progress bars that say when nothing has come yet because programs are being compiled."""

from t6jax.extras import needs

with needs("eval"):
    from tqdm import tqdm


class ProgressBar(tqdm):
    """A tqdm bar that shows "compiling ..." until its first update."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        if not self.disable and self.total:
            self.set_postfix_str("compiling ...")

    def update(self, n: float | None = 1) -> bool | None:
        """Advances by n; see tqdm."""
        if not self.disable and self.n == 0:
            self.set_postfix_str("", refresh=False)
        return super().update(n)
