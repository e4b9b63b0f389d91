"""Building an image: the plan, the assembly and the engine."""
