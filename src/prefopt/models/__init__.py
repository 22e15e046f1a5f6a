"""Loading models, making them trainable, and saving them in the plain libraries' formats."""
