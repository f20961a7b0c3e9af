"""Compare and Critique: the consensus of several teachers, and preference optimisation against all of them."""
