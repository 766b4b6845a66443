"""FlashTPA: attention of new tokens over a packed TPA cache."""
