"""How likely is a response? One scorer per modality; methods see only its numbers."""
