"""megabert: from raw text to a model that answers, for the Megatron family of BERT encoders."""
