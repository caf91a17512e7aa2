"""One student: plan, the teacher's columns, adapters, one block, all blocks."""
