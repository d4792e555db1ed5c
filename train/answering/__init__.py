"""Answers: the rules of what counts as right, and worker processes in which a rule may hang without harm."""
