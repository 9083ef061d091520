"""From a row of logits to a token. Knows nothing of chips, batches or grammars."""
