"""What is trained: one file for each kind of task, from a configuration to a `Task` for the one trainer."""
