"""A smaller student from a teacher: costs, errors, a choice, a plan."""
