"""What is trained: tasks, update rules, verdicts. Needs numpy and torch alone (ray in `tune`)."""

#: Version of the whole project; part of every spec hash, since numerics may change with it.
__version__ = "0.1.0"
