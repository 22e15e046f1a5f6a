"""One trainer, a subclass of transformers.Trainer, for every method and modality."""
