"""The maths that methods share: scores, responses, losses, and how a method is made. Imports only torch."""
