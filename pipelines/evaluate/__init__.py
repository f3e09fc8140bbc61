"""Images of every arm, drawn and scored by Ray Data actors."""
